// Which outputs pass through the L2 instead of staying there: a pure function, tested on the CPU.
#pragma once

#include <cstdint>

namespace sglk {

// Half the L2: an output of that size leaves no room for what its reader needs besides.
constexpr bool is_streaming(int64_t output_bytes, int64_t l2_bytes) { return output_bytes > l2_bytes / 2; }

}  // namespace sglk
