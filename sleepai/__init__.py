__version__ = "0.1.0"

PUBLIC = ("read_recording", "compute_features", "evaluate", "compare", "load_model")


def __getattr__(name):
    """The functions of `sleepai.public`, imported when first asked for."""
    if name in PUBLIC:
        from sleepai import public

        return getattr(public, name)
    raise AttributeError(f"module 'sleepai' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *PUBLIC])
