"""The English of the demo track: words, phrases, sentences, questions, minimal pairs. See hgrnx.data.grammar."""
