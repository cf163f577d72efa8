"""Model weights from the node's memory: client of the Weightline node agent."""

from .agent import Agent, connect
from .errors import (
    AlreadyExists,
    Cancelled,
    Corrupt,
    DeadlineExceeded,
    Error,
    Internal,
    InUse,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Refused,
    ResourceExhausted,
    Unavailable,
)
from .held import Held
from .offer import Filling
from .tensor import Tensor

__all__ = [
    "Agent",
    "AlreadyExists",
    "Cancelled",
    "Corrupt",
    "DeadlineExceeded",
    "Error",
    "Filling",
    "Held",
    "InUse",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "Refused",
    "ResourceExhausted",
    "Tensor",
    "Unavailable",
    "connect",
]
