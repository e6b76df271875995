"""Every error a user can cause.  Each message says what was expected, what came, and what to do."""


class LutraError(Exception):
    """Base of all errors that are somebody's input, not our mistake."""


class FileError(LutraError):
    """A model file is broken, hostile or of a kind we do not read."""


class FormatError(LutraError):
    """Codes, scales or shapes do not fit the format they claim."""


class KernelError(LutraError):
    """A kernel was written, specialised or called wrongly; names the line of the kernel."""


class CapacityError(LutraError):
    """The request needs more context, memory or threads than there are."""


class RequestError(LutraError):
    """A request asks for something that has no meaning (sampling values, names, options)."""
