// Whole model folders: an index and two shards. What is scanned makes a layout that encodes, decodes and is the same.
// Input: u16 bytes of the index, u16 bytes of the first shard, then index, first shard, second shard.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/descriptor.h"
#include "fuzz.h"
#include "model/scan.h"
#include "safetensors_input.h"
#include "transport/frame.h"

namespace weightline::fuzz {

namespace {

struct Parts {
  std::span<const uint8_t> index, first, second;
};

Bytes joined(std::string_view index, const Bytes& first, const Bytes& second) {
  Bytes input(4);
  putU16(input.data(), static_cast<uint16_t>(index.size()));
  putU16(input.data() + 2, static_cast<uint16_t>(first.size()));
  input.insert(input.end(), index.begin(), index.end());
  input.insert(input.end(), first.begin(), first.end());
  input.insert(input.end(), second.begin(), second.end());
  return input;
}

Parts split(std::span<const uint8_t> input) {
  if (input.size() < 4) return {};
  const auto rest = input.subspan(4);
  const size_t index = std::min<size_t>(getU16(input.data()), rest.size());
  const size_t first = std::min<size_t>(getU16(input.data() + 2), rest.size() - index);
  return {rest.first(index), rest.subspan(index, first), rest.subspan(index + first)};
}

std::string folder() { return privateFolder() + "/model"; }

void write(const Descriptor& file, std::span<const uint8_t> bytes) {
  if (::ftruncate(file.get(), 0) != 0 || ::pwrite(file.get(), bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) std::abort();
}

Descriptor make(const char* name) { return Descriptor(::open((folder() + "/" + name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)); }

}  // namespace

Target describe() {
  Target target;
  target.name = "model_folder";
  const Bytes first = safetensorsFile(R"({"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"e":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}})", 16);
  const Bytes second = safetensorsFile(R"({"x":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},"w":{"dtype":"U8","shape":[1],"data_offsets":[6,7]}})", 7);
  target.seeds = {joined(R"({"weight_map":{"w":"1.safetensors","e":"1.safetensors","x":"2.safetensors"}})", first, second), joined(R"({"weight_map":{"x":"2.safetensors"}})", first, second)};
  for (const auto& [header, data] : safetensorsSeeds()) target.seeds.push_back(joined(R"({"weight_map":{"w":"1.safetensors"}})", safetensorsFile(header, std::min<uint64_t>(data, 64)), second));
  target.tokens = safetensorsTokens();
  for (const char* token : {"\"weight_map\":{", "1.safetensors", "2.safetensors", "\"w\":", "\"x\":", "\"e\":"}) target.tokens.emplace_back(token);
  // Each part is mended by itself; the lengths of the parts say where they are.
  target.mend = [](Bytes& input, Random& random) {
    const Parts parts = split(input);
    Bytes one(parts.first.begin(), parts.first.end()), two(parts.second.begin(), parts.second.end());
    if (!random.oneIn(4)) mendSafetensors(one, 0);
    if (!random.oneIn(4)) mendSafetensors(two, 0);
    input = joined(textOf(parts.index), one, two);
  };
  ::mkdir(folder().c_str(), 0700);
  return target;
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  static const Descriptor index = fuzz::make("model.safetensors.index.json"), first = fuzz::make("1.safetensors"), second = fuzz::make("2.safetensors");
  const fuzz::Parts parts = fuzz::split({data, bytes});
  fuzz::write(index, parts.index);
  fuzz::write(first, parts.first);
  fuzz::write(second, parts.second);
  const Cancel never;
  try {
    const ScanResult result = scanModel(fuzz::folder(), "/", Algorithm::kXxh3, never);
    const std::vector<uint8_t> encoded = encodeLayout(result.layout);
    const std::vector<uint8_t> again = encodeLayout(decodeLayout(encoded));
    if (encoded != again) fuzz::broken("the layout that was made is not the one that is read");
    if (result.files.size() != result.layout.segments.size()) fuzz::broken("files and segments differ");
  } catch (const Fault& fault) {
    fuzz::expectFault(fault, {Code::kCorrupt, Code::kRefused});
  }
  return 0;
}
