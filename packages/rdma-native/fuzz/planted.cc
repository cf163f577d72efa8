// A target with faults planted in it, for the test of the driver alone: WEIGHTLINE_PLANTED names the one that is live. Each lies behind
// words that no seed has together, as real ones do.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>

#include "fuzz.h"

namespace weightline::fuzz {

Target describe() {
  Target target;
  target.name = "planted";
  target.seeds = {bytesOf("{\"kind\":\"none\",\"size\":1}"), bytesOf("[0,1,2,3,4,5,6,7]")};
  target.tokens = {"deep", "fault", "\"size\":"};
  return target;
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  const char* live = std::getenv("WEIGHTLINE_PLANTED");
  const std::string_view text = fuzz::textOf({data, bytes});
  // Reached only step by step: each needs the one before.
  if (live == nullptr || text.find("deep") == std::string_view::npos) return 0;
  if (text.find("fault") == std::string_view::npos) return 0;
  if (text.find("4294967296") == std::string_view::npos) return 0;
  const std::string_view kind = live;
  if (kind == "overflow") {
    const fuzz::Bytes copy(data, data + bytes);
    const volatile uint8_t beyond = copy.data()[bytes];
    static_cast<void>(beyond);
  } else if (kind == "undefined") {
    volatile int most = std::numeric_limits<int>::max();
    most = most + 1;
  } else if (kind == "hang") {
    while (true) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  } else if (kind == "leak") {
    auto* volatile lost = new fuzz::Bytes(100);
    static_cast<void>(lost);
    lost = nullptr;
  } else if (kind == "memory") {
    const fuzz::Bytes huge(size_t{1} << 31);
    static_cast<void>(huge.size());
  } else if (kind == "check") {
    fuzz::broken("planted");
  }
  return 0;
}
