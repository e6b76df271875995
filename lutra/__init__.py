"""lutra: large language models of one to four bits, on kernels compiled for the CPU it finds.

from lutra import load
llm = load()                                  # the model that comes with lutra; or a path
for text in llm.stream("Once upon a time"):
    print(text, end="", flush=True)

Names are imported when first used (PEP 562): `import lutra` loads neither NumPy nor LLVM.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lutra.engine.llm import LLM
    from lutra.engine.params import SamplingParams
    from lutra.errors import LutraError

    load = LLM.load

__version__ = "0.1.0"
__all__ = ["LLM", "LutraError", "SamplingParams", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("LLM", "load"):
        from lutra.engine.llm import LLM

        return LLM.load if name == "load" else LLM
    if name == "SamplingParams":
        from lutra.engine.params import SamplingParams

        return SamplingParams
    if name == "LutraError":
        from lutra.errors import LutraError

        return LutraError
    raise AttributeError(f"module 'lutra' has no attribute '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
