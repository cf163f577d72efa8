// The layout format: what decodes encodes to the same bytes, the header alone says the same, and its chunks are right.
#include "layout/layout.h"

#include <cstring>

#include "fuzz.h"
#include "store/geometry.h"

namespace weightline::fuzz {

namespace {

Layout filesLayout() {
  Layout layout;
  layout.segments = {{100, "config.json"}, {5000, "model-00001.safetensors"}, {0, "empty/file"}, {1ull << 31, "z/model.safetensors"}};
  std::swap(layout.segments[1], layout.segments[2]);
  layout.items = {{"", "F8_E4M3", {0}, 0, 0, 0, 0}, {"a", "F32", {4}, 2, 80, 16, 1}, {"b\"\n", "U8", {2, 1}, 3, 8, 2, 2}, {"c", "F5_NEW", {}, 3, 1ull << 30, 1ull << 30, 3}};
  return layout;
}

Layout tensorsLayout() {
  Layout layout;
  layout.kind = "tensors";
  layout.algorithm = Algorithm::kSha256;
  layout.segments = {{1280, ""}, {1ull << 30, ""}};
  layout.items = {{"head", "BF16", {2, 4}, 0, 0, 16, 0}, {"tail", "BF16", {2, 4}, 0, 0, 16, 0}, {"wide", "F16", std::vector<uint64_t>(kMaxRank, 1), 0, 256, 2, 2}, {"x", "U8", {1024}, 0, 256, 1024, 3}, {"y", "U8", {1u << 30}, 1, 0, 1u << 30, 4}};
  return layout;
}

// The length of the header's text, as the text itself says it.
void mendHeaderLength(Bytes& input, Random&) {
  if (input.size() < 16) return;
  const std::string_view text = textOf(std::span<const uint8_t>(input).subspan(16));
  const size_t end = text.find("}]}");
  if (end == std::string_view::npos) return;
  size_t bytes = end + 3;
  while (bytes % 8 != 0) {
    if (16 + bytes >= input.size() || input[16 + bytes] != ' ') input.insert(input.begin() + static_cast<std::ptrdiff_t>(16 + bytes), ' ');
    bytes++;
  }
  const auto length = static_cast<uint32_t>(bytes);
  std::memcpy(input.data() + 12, &length, sizeof(length));
}

// Whatever a header says, its chunks must lie inside its segments, one after another.
void checkGeometry(const Layout& layout) {
  const Geometry geometry(layout);
  if (geometry.totalBytes() != layout.totalBytes()) broken("segments' sum");
  const uint64_t chunks = geometry.chunkCount();
  for (const uint64_t chunk : {uint64_t{0}, chunks / 2, chunks - 1}) {
    if (chunk >= chunks) continue;
    const Geometry::Place at = geometry.place(chunk);
    if (at.segment >= geometry.segmentCount() || at.bytes == 0 || at.bytes > geometry.chunkBytes() || at.offset + at.bytes > geometry.segment(at.segment).bytes) broken("a chunk outside its segment");
    if (geometry.linearEnd(chunk) > geometry.totalBytes()) broken("a chunk that ends behind the last one");
  }
}

}  // namespace

Target describe() {
  Target target;
  target.name = "layout";
  target.seeds = {encodeLayout(filesLayout()), encodeLayout(tensorsLayout()), encodeLayout(Layout{})};
  Layout one;
  one.segments = {{16, "m.safetensors"}};
  one.items = {{"w", "U8", {8}, 0, 8, 8, 0}};
  target.seeds.push_back(encodeLayout(one));
  target.tokens = {"WLLAYOUT", "{\"kind\":\"files\"", "\"tensors\"", "\"algorithm\":\"xxh3-128\"", "sha-256", "\"chunk_bytes\":65536", "131072", "1048576", "\"items\":", "\"dims\":", "\"dtypes\":[",
                   "\"segments\":[", "{\"bytes\":0}", ",{\"bytes\":1,\"path\":\"zz\"}", "..", "/", "\\u0000", "}]}", "\"U8\"", "\"F32\""};
  target.mend = mendHeaderLength;
  return target;
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  const std::span input(data, bytes);
  bool header = false;
  try {
    fuzz::checkGeometry(decodeLayoutHeader(input));
    header = true;
  } catch (const Fault& fault) {
    fuzz::expectFault(fault, {Code::kCorrupt, Code::kRefused});
  }
  try {
    const Layout layout = decodeLayout(input);
    if (!header) fuzz::broken("whole it is taken, its header alone not");
    const std::vector<uint8_t> again = encodeLayout(layout);
    if (!std::equal(again.begin(), again.end(), input.begin(), input.end())) fuzz::broken("it does not encode to the same bytes");
  } catch (const Fault& fault) {
    fuzz::expectFault(fault, {Code::kCorrupt, Code::kRefused});
  }
  return 0;
}
