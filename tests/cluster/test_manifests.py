"""The manifests against the documented API, and against the images, commands and paths that this repository has.

``api.json`` has the fields of KubeRay's resources and of Kubernetes' own, taken from their published schemas. A type
is the name of a scalar, ``#Name`` of another type, ``[type]`` a list, ``{"*": type}`` a map.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hgrnx.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
TYPES = json.loads((Path(__file__).parent / "api.json").read_text(encoding="utf-8"))["types"]
VERSIONS = {
    "ray.io/v1": {"RayCluster", "RayJob"},
    "v1": {"Namespace", "PersistentVolumeClaim", "Service"},
    "apps/v1": {"Deployment", "StatefulSet"},
    "networking.k8s.io/v1": {"NetworkPolicy"},
}
QUANTITY = re.compile(r"\d+(\.\d+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")
SCALARS = {"integer": int, "boolean": bool, "number": (int, float), "string": str}


def documents() -> list[dict[str, Any]]:
    return [document for path in FILES for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def problems(value: Any, kind: Any, where: str) -> Iterator[str]:
    """What of ``value`` the API does not have."""
    if isinstance(kind, str) and kind.startswith("#"):
        kind = TYPES[kind[1:]]
    if kind == "any":
        return
    if isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{where}: not a list"
            return
        for index, item in enumerate(value):
            yield from problems(item, kind[0], f"{where}[{index}]")
    elif isinstance(kind, dict):
        if not isinstance(value, dict):
            yield f"{where}: not a mapping"
            return
        fields = {key: kind["*"] for key in value} if "*" in kind else kind["fields"]
        yield from (f"{where}.{key}: missing" for key in kind.get("required", ()) if key not in value)
        for key, item in value.items():
            if key not in fields:
                yield f"{where}.{key}: no such field"
            else:
                yield from problems(item, fields[key], f"{where}.{key}")
    elif kind == "quantity":
        if not QUANTITY.fullmatch(str(value)) or isinstance(value, bool):
            yield f"{where}: {value!r} is no quantity"
    elif kind == "int-or-string":
        if type(value) not in (int, str):
            yield f"{where}: {value!r} is neither a number nor a name"
    else:
        name, _, allowed = kind.partition(":")
        if not isinstance(value, SCALARS[name]) or (isinstance(value, bool) and name != "boolean"):
            yield f"{where}: {value!r} is no {name}"
        elif allowed and value not in allowed.split("|"):
            yield f"{where}: {value!r} is none of {allowed}"


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and spec of every pod that the manifests lead to."""
    for document in documents():
        spec, name = document.get("spec", {}), document["metadata"]["name"]
        if document["kind"] == "RayCluster":
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                yield f"{name}/{group.get('groupName', 'head')}", group["template"]["spec"]
        elif "template" in spec:
            yield name, spec["template"]["spec"]


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name, pod in pods():
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield f"{name}/{container['name']}", container, pod


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_field_is_the_apis(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        kind = document["kind"]
        assert kind in VERSIONS[document["apiVersion"]]
        assert list(problems(document, f"#{kind}", kind)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda spec: spec.update(enableAutoscaling=True), "RayCluster.spec.enableAutoscaling: no such field"),
        (lambda spec: spec.pop("headGroupSpec"), "RayCluster.spec.headGroupSpec: missing"),
        (lambda spec: spec["authOptions"].update(mode="tokens"), "mode: 'tokens' is none of disabled|token"),
        (lambda spec: spec["workerGroupSpecs"][0].update(replicas="1"), "replicas: '1' is no integer"),
        (
            lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(livenessprobe={}),
            "template.spec.containers[0].livenessprobe: no such field",
        ),
        (lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "num-cpus: 0 is no string"),
        (
            lambda spec: spec["autoscalerOptions"]["resources"]["limits"].update(memory="1 GB"),
            "limits.memory: '1 GB' is no quantity",
        ),
    ],
)
def test_the_check_sees_mistakes(change: Any, told: str) -> None:
    document = next(document for document in documents() if document["kind"] == "RayCluster")
    change(document["spec"])
    (found,) = problems(document, "#RayCluster", "RayCluster")
    assert found.endswith(told)


def test_every_container_is_bounded_unprivileged_and_looked_after() -> None:
    seen = set()
    for name, container, pod in containers():
        rights = {**pod["securityContext"], **container["securityContext"]}
        assert rights["runAsNonRoot"] and rights["runAsUser"] > 0, name
        assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}, name
        assert rights["seccompProfile"] == {"type": "RuntimeDefault"}, name
        limits = container["resources"]["limits"]
        assert {"cpu", "memory"} <= limits.keys() & container["resources"]["requests"].keys(), name
        if container not in pod.get("initContainers", ()):
            assert {"livenessProbe", "readinessProbe"} <= container.keys(), name
        seen.add(name)
    assert {"hgrnx/head/ray", "hgrnx/gpu/ray", "mlflow/mlflow", "mlflow/bucket", "postgres/postgres"} <= seen


def test_secrets_are_only_referred_to_and_made_by_the_readme() -> None:
    assert not any(document["kind"] == "Secret" for document in documents())
    readme = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
    made = {
        command.split()[4]: set(re.findall(r"--from-(?:literal|file)=([\w.-]+)=", command))
        for command in re.findall(r"kubectl create secret generic (?:.*\\\n)*.*", readme)
    }
    used: dict[str, set[str]] = {"hgrnx-ray-token": {"auth_token"}}
    for _, container, pod in containers():
        for variable in container.get("env", ()):
            if re.search("PASSWORD|TOKEN|SECRET|KEY|BACKEND", variable["name"]):
                assert "value" not in variable, variable
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                used.setdefault(reference["name"], set()).add(reference["key"])
        for volume in pod.get("volumes", ()):
            if "secret" in volume:
                keys = {item["key"] for item in volume["secret"]["items"]}
                used.setdefault(volume["secret"]["secretName"], set()).update(keys)
    assert {name: made.get(name) for name in used} == used


def test_images_commands_and_mounts_exist() -> None:
    stages = dockerfile_stages()
    for name, container, pod in containers():
        image, _, target = container["image"].partition(":")
        if image == "hgrnx":
            assert target in stages, name
            python = container.get("command", [""])[:2] == ["python", "-c"]
            if python:
                compile(container["args"][0], name, "exec")
        else:
            assert target and target != "latest", f"{name}: unpinned image"
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        volumes |= {
            claim["metadata"]["name"]
            for document in documents()
            if document["metadata"]["name"] == name.split("/")[0]
            for claim in document.get("spec", {}).get("volumeClaimTemplates", ())
        }
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes, name
        ports = {port["name"] for port in container.get("ports", ())}
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            assert not isinstance(port, str) or port in ports, name
        homes = {item["value"] for item in container.get("env", ()) if item["name"] == "HGRNX_HOME"}
        assert homes <= {mount["mountPath"] for mount in container.get("volumeMounts", ())}, name
    claims = {d["metadata"]["name"] for d in documents() if d["kind"] == "PersistentVolumeClaim"}
    for _, pod in pods():
        for volume in pod.get("volumes", ()):
            assert volume.get("persistentVolumeClaim", {"claimName": "hgrnx-home"})["claimName"] in claims


def test_the_job_runs_a_script_of_the_image_with_a_recipe_that_exists() -> None:
    (job,) = (document["spec"] for document in documents() if document["kind"] == "RayJob")
    (cluster,) = (document for document in documents() if document["kind"] == "RayCluster")
    assert job["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    python, script, recipe, *arguments = shlex.split(job["entrypoint"])
    copied = re.search(r"^COPY jobs (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert copied and python == "python"
    assert (ROOT / "jobs" / Path(script).relative_to(copied[1])).is_file()
    home, *overrides = arguments[1:] if arguments[0] == "--home" else []
    assert home == "/hgrnx"
    assert load_recipe(recipe, overrides).launch.num_workers == 2
    import ray

    assert cluster["spec"]["rayVersion"] == ray.__version__


def test_services_and_policies_select_pods_that_exist() -> None:
    labels = [{"app": "hgrnx-ray"}]
    for document in documents():
        if document["kind"] in {"Deployment", "StatefulSet"}:
            spec = document["spec"]
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
            labels.append(spec["selector"]["matchLabels"])
        if document["kind"] == "RayCluster":
            for group in (document["spec"]["headGroupSpec"], *document["spec"]["workerGroupSpecs"]):
                assert group["template"]["metadata"]["labels"] == labels[0]
    guarded = []
    for document in documents():
        if document["kind"] == "Service":
            assert document["spec"]["selector"] in labels
        if document["kind"] == "NetworkPolicy":
            guarded.append(document["spec"]["podSelector"].get("matchLabels"))
            rules = [*document["spec"].get("ingress", ()), *document["spec"].get("egress", ())]
            peers = [peer for rule in rules for peer in (*rule.get("from", ()), *rule.get("to", ()))]
            for peer in peers:
                assert "namespaceSelector" in peer or peer["podSelector"]["matchLabels"] in labels
    assert all(label in guarded for label in labels) and None in guarded  # the last: all pods, nobody let in


def test_mlflow_beyond_its_pod_asks_for_passwords() -> None:
    ((container, _),) = ((container, pod) for name, container, pod in containers() if name == "mlflow/mlflow")
    arguments = [*container["command"], *container["args"]]
    assert arguments[arguments.index("--app-name") + 1] == "basic-auth"
    known = subprocess.run(
        [sys.executable, "-m", "mlflow", "server", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(argument in known for argument in arguments if argument.startswith("--"))


def test_the_ssh_cluster_is_what_ray_up_takes(tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster" / "ssh.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(dict(config)))
    with pytest.raises(Exception, match="head_nodes"):
        validate_config(prepare_config({**config, "head_nodes": {}}))
    started = " ".join([*config["head_start_ray_commands"], *config["worker_start_ray_commands"]])
    assert started.count("RAY_AUTH_MODE=token") == 2 and "--dashboard-host=127.0.0.1" in started
    known = subprocess.run(
        [str(Path(sys.executable).parent / "ray"), "start", "--help"], capture_output=True, text=True
    )
    assert all(option in known.stdout for option in re.findall(r"--[a-z-]+", started))
    assert "~/.ray/auth_token" in config["file_mounts"]


def dockerfile_stages() -> dict[str, str]:
    """Stages of the Dockerfile: name to what it is made from."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)}


def test_the_dockerfile() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = dockerfile_stages()
    assert {"cpu", "gpu", "mlflow"} <= stages.keys() and len(stages) == text.count("\nFROM ")
    for target in ("cpu", "gpu", "mlflow"):
        chain = [target]
        while chain[-1] in stages:
            chain.append(stages[chain[-1]])
        assert chain[-1] == "python:${PYTHON}"
        users = [re.findall(r"^USER (\S+)$", stage_text(text, name), re.MULTILINE) for name in chain[:-1]]
        assert next(user[-1] for user in users if user) == "1000", f"{target} runs as root"
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists() and name in allowed, name
    for line in re.findall(r"pip install (?!.*--no-deps)(.*)", text):
        assert "-c constraints.txt" in line
    assert text.index("torch.txt") < text.index("requirements.txt") < text.index("COPY hgrnx")


def stage_text(text: str, name: str) -> str:
    return re.split(r"^FROM ", text.partition(f" AS {name}\n")[2], flags=re.MULTILINE)[0]
