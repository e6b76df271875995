"""Programs in the kernel language, one operation per file."""
