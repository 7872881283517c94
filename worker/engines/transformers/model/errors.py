"""Why a model cannot be computed in some way. None of these leaves the room: the loader takes
another way, or raises EngineUnavailable.
"""


class ModelError(Exception):
    """Permanent: the same model fails the same way on this machine; the text says why."""


class UnsupportedModel(ModelError):
    """The runner, or a padded batch, cannot compute this architecture exactly."""


class UnsupportedScheme(ModelError):
    """This CPU, or this torch, lacks what a quantization scheme needs."""
