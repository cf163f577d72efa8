// Single frames of the stream: what decodes encodes to the same bytes.
#include "transport/frame.h"

#include <algorithm>

#include "fuzz.h"

namespace weightline::fuzz {

Target describe() {
  Target target;
  target.name = "frame";
  for (uint8_t type = 1; type <= 9; type++) {
    const FrameBytes frame = encodeFrame({static_cast<FrameType>(type), type == 4 ? 65536u : 4u, type, {}});
    target.seeds.emplace_back(frame.begin(), frame.end());
  }
  target.maxBytes = kFrameHeaderBytes;
  target.mend = [](Bytes& input, Random&) { input.resize(kFrameHeaderBytes); };
  return target;
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  if (bytes < kFrameHeaderBytes) return 0;
  const std::span<const uint8_t, kFrameHeaderBytes> frame(data, kFrameHeaderBytes);
  try {
    const FrameHeader header = decodeFrame(frame);
    if (header.payloadBytes > kMaxDataPayloadBytes) fuzz::broken("a payload above its limit");
    const FrameBytes again = encodeFrame(header);
    if (!std::equal(again.begin(), again.end(), frame.begin())) fuzz::broken("it does not encode to the same bytes");
  } catch (const Fault& fault) {
    fuzz::expectFault(fault, {Code::kCorrupt});
  }
  return 0;
}
