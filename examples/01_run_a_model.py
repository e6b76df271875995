"""Run a model from Python: the one that comes with lutra, or any other.

python examples/01_run_a_model.py [MODEL]        MODEL: a .gguf file or a Hugging Face folder
"""

import sys

from lutra import SamplingParams, load

llm = load(sys.argv[1] if len(sys.argv) > 1 else None)
print(llm.describe().splitlines()[0])

prompt = "Once upon a time"
print(prompt, end="")
for text in llm.stream(prompt, SamplingParams(max_tokens=80, seed=1)):  # the same seed, the same text, on every machine
    print(text, end="", flush=True)

stats = llm.stats
print(f"\n\n{stats.prompt_tokens} tokens of prompt took {stats.prefill_s * 1e3:.1f} ms,", end=" ")
print(f"{stats.generated_tokens - 1} more {stats.decode_s * 1e3:.1f} ms")
