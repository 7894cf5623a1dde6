// The activations that a convolution can fuse into its store.
#pragma once

namespace fastconv {

enum class Activation : int { none, relu, relu6, silu, gelu, hardswish };

}  // namespace fastconv
