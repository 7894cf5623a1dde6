"""The compiled library, csrc/module.cpp. Importing it registers the operators and the CPU kernels."""

def build_info() -> dict[str, str]: ...
def cpu_capability() -> str: ...
def grouped_conv2d_cpu_plan(direction: str, dtype: str, geometry: object) -> str: ...
def grouped_conv2d_cuda_plan(
    direction: str,
    dtype: str,
    geometry: object,
    compute_capability: int,  # 90 is 9.0
    multiprocessors: int,
    smem_per_block: int,
    smem_per_multiprocessor: int,
) -> str: ...
