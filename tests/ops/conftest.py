"""Before the first product of the process, or bfloat16 ones would end it on some virtual machines."""

from hgrnx.ops.cpu import guard_bf16_products

guard_bf16_products()
