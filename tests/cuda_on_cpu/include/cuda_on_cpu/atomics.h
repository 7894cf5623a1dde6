// Atomic operations. Fibers run one at a time, so that read, change and write need no lock.
#pragma once

namespace cuda_on_cpu {

template <class T, class Change>
CUDA_ON_CPU_OPAQUE T read_modify_write(T* address, Change change, const void* site) {
  note_access(address, sizeof(T), kWrite | kAtomic, site);
  T old_value;
  memcpy(static_cast<void*>(&old_value), static_cast<const void*>(address), sizeof(T));
  const T new_value = change(old_value);
  memcpy(static_cast<void*>(address), static_cast<const void*>(&new_value), sizeof(T));
  return old_value;
}

template <class T>
struct Identity {
  using type = T;  // keeps an argument out of template deduction, so that atomicAdd(float_pointer, 1) works
};

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_ATOMIC(name, expression)                                               \
  template <class T>                                                                       \
  CUDA_ON_CPU_OPAQUE T name(T* address, typename cuda_on_cpu::Identity<T>::type value) {   \
    return cuda_on_cpu::read_modify_write(                                                 \
        address, [value](T old) -> T { return expression; }, __builtin_return_address(0)); \
  }
CUDA_ON_CPU_ATOMIC(atomicAdd, T(old + value))
CUDA_ON_CPU_ATOMIC(atomicSub, T(old - value))
CUDA_ON_CPU_ATOMIC(atomicExch, (static_cast<void>(old), value))
CUDA_ON_CPU_ATOMIC(atomicMax, old > value ? old : value)
CUDA_ON_CPU_ATOMIC(atomicMin, old < value ? old : value)
CUDA_ON_CPU_ATOMIC(atomicAnd, T(old& value))
CUDA_ON_CPU_ATOMIC(atomicOr, T(old | value))
CUDA_ON_CPU_ATOMIC(atomicXor, T(old ^ value))
CUDA_ON_CPU_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
CUDA_ON_CPU_ATOMIC(atomicDec, (old == 0 || old > value) ? value : T(old - 1))
#undef CUDA_ON_CPU_ATOMIC

template <class T>
CUDA_ON_CPU_OPAQUE T atomicCAS(T* address, typename cuda_on_cpu::Identity<T>::type expected,
                               typename cuda_on_cpu::Identity<T>::type value) {
  return cuda_on_cpu::read_modify_write(
      address, [=](T old) -> T { return old == expected ? value : old; }, __builtin_return_address(0));
}
