// Lists of tensors that pods offer: what is taken becomes a layout that says the same when it is read again, with every item aligned and
// inside its segment, and no byte of two.
#include "model/tensor_list.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/descriptor.h"
#include "fuzz.h"

namespace weightline::fuzz {

Target describe() {
  Target target;
  target.name = "tensor_list";
  for (const std::string_view text : {
           R"({"a":{"dtype":"BF16","shape":[2,3]}})",
           R"({"z":{"dtype":"U8","shape":[5]},"b":{"alias":"z"},"a":{"dtype":"F4","shape":[4]},"":{"dtype":"F32","shape":[]}})",
           R"({"n":{"dtype":"NEW","shape":[7],"bytes":9},"e":{"dtype":"F64","shape":[0,9]},"o":{"alias":"n"},"p":{"alias":"e"}})",
           R"({"large":{"dtype":"U8","shape":[3221225472]},"x":{"dtype":"U8","shape":[1073741824]},"y":{"dtype":"U8","shape":[1]}})",
           R"({"\u005f":{"dtype":"I64","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}})",
       }) {
    target.seeds.push_back(bytesOf(text));
  }
  target.tokens = {"\"alias\"", "\"bytes\"", "\"dtype\"", "\"shape\"", "\"BF16\"", "\"F4\"", "{", "}", "[", "]", ":", ",", "18446744073709551615", "4611686018427387904", "1073741824"};
  return target;
}

void check(const Layout& layout) {
  const Layout again = decodeLayout(encodeLayout(layout));
  if (encodeLayout(again) != encodeLayout(layout)) broken("a layout reads back as another");
  std::vector<std::pair<uint64_t, uint64_t>> taken;
  for (uint32_t i = 0; i < layout.items.size(); i++) {
    const Item& item = layout.items[i];
    if (item.bytes == 0 || item.alias != i) continue;
    const uint64_t size = layout.segments[item.segment].bytes;
    if (item.offset % kItemAlignmentBytes != 0) broken("an item that is not aligned");
    if (size > kSegmentBytes && (item.offset != 0 || item.bytes != size)) broken("a large segment with more than one item");
    taken.emplace_back((static_cast<uint64_t>(item.segment) << 40) + std::min(item.offset, uint64_t{1} << 39), item.bytes);
  }
  std::sort(taken.begin(), taken.end());
  for (size_t i = 1; i < taken.size(); i++) {
    if (taken[i].first >> 40 == taken[i - 1].first >> 40 && taken[i].first < taken[i - 1].first + taken[i - 1].second) broken("two items share bytes");
  }
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  static const Descriptor file(::memfd_create("list", MFD_CLOEXEC));
  if (::ftruncate(file.get(), 0) != 0 || ::pwrite(file.get(), data, bytes, 0) != static_cast<ssize_t>(bytes)) std::abort();
  try {
    fuzz::check(readTensorList(file.get(), bytes, Algorithm::kXxh3));
  } catch (const Fault& fault) {
    fuzz::expectFault(fault, {Code::kInvalidArgument});
  }
  return 0;
}
