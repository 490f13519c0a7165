"""A GPU that is not there: tensors that say that they are on ``cuda`` and hold their values in main memory.

FakeTensorMode checks devices too, but its tensors have no values, so that nothing can run under it whose shapes depend on
them, such as the search and the joining of windows; and without a driver PyTorch refuses a backward pass under it. Here
every operation is computed on the CPU, after these checks:

- all tensors are on one device, as CUDA demands (scalars, copies and the indices of an index may come from elsewhere);
- the operation has a kernel for CUDA, where PyTorch was built with CUDA;
- what makes the host wait for a real device is noted in :attr:`PretendedGpu.waits`, by name.

To PyTorch's own code in C++ the tensors are on the CPU. So autocast on ``cuda`` is that of the CPU, whose lists of
operations differ in a few; and in a backward pass, where PyTorch itself may add tensors, devices are not compared.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("cuda:0")
COPIES = ("aten::_to_copy", "aten::copy_")
INDEXING = ("aten::index.", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index")
# What CUDA can only answer after all that was asked of it before: a number, or a shape, depends on values.
WAITING = (
    *(
        "aten::_local_scalar_dense",
        "aten::item",
        "aten::nonzero",
        "aten::_unique2",
        "aten::unique_dim",
        "aten::bincount",
    ),
    *("aten::masked_select", "aten::equal", "aten::is_nonzero", "aten::repeat_interleave.Tensor"),
)
KERNELS = ("CUDA", "SparseCsrCUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
KERNELS += ("CompositeExplicitAutogradNonFunctional",)


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU. ``held``: its values, on the CPU."""

    @staticmethod
    def __new__(cls, held):
        strided = held.layout == torch.strided
        where = {"strides": held.stride(), "storage_offset": held.storage_offset()} if strided else {}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="cpu", **where)

    def __init__(self, held):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __tensor_flatten__(self):
        """Part of PyTorch's interface, by which modules take such tensors for parameters."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(tensors, context, size, stride):
        """The other part."""
        return OnGpu(tensors["held"])

    def __repr__(self, *, tensor_contents=None):
        return f"OnGpu({self.held})"

    def cpu(self):
        """Plain values, without a gradient; the host waits for them."""
        PretendedGpu.current.waits.append("Tensor.cpu")
        return self.held.detach().clone()

    def cuda(self, *_, **__):
        """The tensor itself."""
        return self

    def numpy(self, *_, **__):
        """As for a tensor on a real GPU."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def to(self, *args, **kwargs):
        """Another dtype, or plain values for the device cpu."""
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            return self.cpu() if dtype is None else self.cpu().to(dtype)
        return self if dtype is None or dtype == self.dtype else original_to(self, dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return PretendedGpu.current.compute(func, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """While it is entered, ``cuda`` is a device like any other. Use :func:`pretended_gpu`."""

    current: PretendedGpu | None = None

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.compute(func, args, kwargs or {})

    def compute(self, func, args, kwargs):
        """Run an operation on what the tensors hold."""
        name = func.name()
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        ours = any(isinstance(tensor, OnGpu) for tensor in tensors)
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        to_gpu = target is not None and target.type == "cuda"
        if not ours and not to_gpu:
            return func(*args, **kwargs)

        self._check(name, tensors)
        self._note(name, args, kwargs, ours)
        if target is not None:
            kwargs = kwargs | {"device": torch.device("cpu")}
        if kwargs.get("pin_memory"):
            kwargs = kwargs | {"pin_memory": None}

        plain_args, plain_kwargs = tree_map_only(OnGpu, lambda tensor: tensor.held, (args, kwargs))
        out = func(*plain_args, **plain_kwargs)
        if name == "aten::copy_" and not isinstance(args[0], OnGpu):
            return args[0]
        if not isinstance(out, (torch.Tensor, tuple, list)):
            return out
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(torch.Tensor, OnGpu, out))

    def _check(self, name, tensors):
        strangers = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim() > 0]
        in_backward = torch._C._current_graph_task_id() >= 0
        if len(tensors) > len(strangers) > 0 and not in_backward and not name.startswith((*COPIES, *INDEXING)):
            raise RuntimeError(f"{name}: tensors on cuda:0 and on {strangers[0].device}")
        # Inside of attention PyTorch has chosen for the CPU by now.
        if torch.version.cuda and not name.startswith(("prim::", "profiler::")) and "_for_cpu" not in name:
            has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
            if not any(has_kernel(name, key) for key in KERNELS):
                raise NotImplementedError(f"{name}: no kernel for CUDA")

    def _note(self, name, args, kwargs, ours):
        if name.startswith(WAITING) and ours:
            self.waits.append(name)
        if name == "aten::_to_copy" and not ours and not kwargs.get("non_blocking"):
            self.waits.append(f"{name} to cuda")
        if name == "aten::copy_" and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu):
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking")
            if isinstance(args[1], OnGpu) or not non_blocking:
                self.waits.append(name)
        if name.startswith(INDEXING):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.waits.append(f"{name} by a mask")
            elif any(not isinstance(index, OnGpu) for index in indices):
                self.waits.append(f"{name} by indices of the host")


# --- a machine that has one ---------------------------------------------------------------------------------------------


class Autocast(torch.autocast):
    """Autocast on ``cuda`` is that of the CPU, to which the tensors belong."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


original_to = torch.Tensor.to
original_grouping = torch._C._group_tensors_by_device_and_dtype


def group_tensors(lists, with_indices=False):
    """In place of PyTorch's grouping of gradients, by which these would be on the CPU."""
    groups = original_grouping(lists, with_indices)
    ours = any(isinstance(tensor, OnGpu) for tensor in lists[0])
    return {(DEVICE if ours else device, dtype): group for (device, dtype), group in groups.items()}


def to(tensor, *args, **kwargs):
    """In place of Tensor.to, which would ask the driver: plain tensors are copied onto the GPU."""
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    if isinstance(tensor, OnGpu) or device is None or device.type != "cuda":
        return original_to(tensor, *args, **kwargs)
    if not non_blocking:
        PretendedGpu.current.waits.append("Tensor.to cuda")
    return OnGpu(tensor.detach().clone() if dtype is None else tensor.detach().to(dtype))


@contextmanager
def cuda_is_believed():
    """PyTorch's own questions about the machine are answered as on one with an Ampere card."""
    with ExitStack() as stack:
        for target, value in (
            ("torch.cuda._lazy_init", lambda: None),
            ("torch.accelerator.is_available", lambda: False),  # the optimizer would ask it for a stream
            ("torch.cuda.is_available", lambda: True),
            ("torch.cuda.device_count", lambda: 1),
            ("torch.cuda.current_device", lambda: 0),
            ("torch.cuda.is_bf16_supported", lambda including_emulation=True: True),
            ("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            ("torch.Tensor.pin_memory", lambda tensor, device=None: tensor),
        ):
            stack.enter_context(mock.patch(target, value))
        yield


@contextmanager
def pretended_gpu():
    """A machine with one GPU, within the block."""
    gpu = PretendedGpu()
    patches = [
        mock.patch("torch.Tensor.to", to),
        mock.patch("torch._C._group_tensors_by_device_and_dtype", group_tensors),
        mock.patch("torch.autocast", Autocast),
        mock.patch("torch._C._InferenceMode", lambda mode: torch.no_grad()),  # which knows no subclasses of tensors
        mock.patch.object(PretendedGpu, "current", gpu),
    ]
    with cuda_is_believed(), ExitStack() as stack:
        for patch in (*patches, gpu):
            stack.enter_context(patch)
        yield gpu
