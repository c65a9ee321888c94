"""minidl: deep learning on NumPy, every backward pass by hand; the same code runs on CuPy."""

from . import initializers, interop
from .backend import BackendError, to_backend, to_host
from .checkpoint import CheckpointError, load, save
from .gradcheck import GradientError, gradcheck
from .kernels.cpu.threads import get_num_threads, set_num_threads
from .layer import Layer
from .layers.dropout import Dropout
from .layers.embedding import Embedding
from .layers.linear import Linear
from .layers.lstm import LSTM
from .losses import LinearCrossEntropy, softmax_cross_entropy
from .optimizers import SGD, Adadelta, AdaGrad, Adam, AdamW, clip_grad_norm
from .parameter import Parameter, flatten
from .sampling import sample
from .schedules import Constant, ExponentialDecay, OneCycle, StepDecay
from .sequences import PackedSequence, Packing, bucketed_batches, pack, pack_rows, unpack
from .sequential import Sequential

__version__ = "0.2.0"

__all__ = [
    "LSTM",
    "SGD",
    "AdaGrad",
    "Adadelta",
    "Adam",
    "AdamW",
    "BackendError",
    "CheckpointError",
    "Constant",
    "Dropout",
    "Embedding",
    "ExponentialDecay",
    "GradientError",
    "Layer",
    "Linear",
    "LinearCrossEntropy",
    "OneCycle",
    "PackedSequence",
    "Packing",
    "Parameter",
    "Sequential",
    "StepDecay",
    "bucketed_batches",
    "clip_grad_norm",
    "flatten",
    "get_num_threads",
    "gradcheck",
    "initializers",
    "interop",
    "load",
    "pack",
    "pack_rows",
    "sample",
    "save",
    "set_num_threads",
    "softmax_cross_entropy",
    "to_backend",
    "to_host",
    "unpack",
]
