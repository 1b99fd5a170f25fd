"""lemmata inside other libraries. Nothing here is imported by ``import lemmata``."""
