#include "model/tensor_list.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "base/json.h"
#include "model/tensor_form.h"
#include "store/files.h"

namespace weightline {

namespace {

using json::Value;

Fault wrong(const std::string& what) { return Fault(Code::kInvalidArgument, "the list of tensors: " + what).field("tensors"); }

// Sums of sizes stay far from overflow below it.
constexpr uint64_t kMaxObjectBytes = 1ull << 62;

struct Alias {
  std::string name, of;
};

class ListReader {
 public:
  explicit ListReader(Algorithm algorithm) : form_(wrong) { layout_.algorithm = algorithm; }

  Layout read(std::string_view text) {
    layout_.kind = "tensors";
    json::parseMembers(text, [&](std::string name, Value value) { member(std::move(name), value); });
    if (layout_.items.empty()) throw wrong("it is empty").limit("1 or more tensors");
    addAliases();
    std::sort(layout_.items.begin(), layout_.items.end(), [](const Item& a, const Item& b) { return a.name < b.name; });
    resolveAliases();
    place();
    return std::move(layout_);
  }

 private:
  void member(std::string name, const Value& value) {
    const std::string where = "tensor " + json::quote(name);
    if (!value.is(Value::Type::kObject)) throw wrong(where + " is not described by an object");
    form_.checkName(name, where);
    if (layout_.items.size() + aliases_.size() >= kMaxItems) {
      throw wrong("more than " + std::to_string(kMaxItems) + " names").value(std::to_string(kMaxItems + 1)).limit(std::to_string(kMaxItems));
    }
    if (!indexOf_.emplace(name, layout_.items.size()).second) throw wrong(where + " appears twice").value(name);
    if (value.find("alias") != nullptr) {
      aliases_.push_back({std::move(name), form_.need(value, "alias", Value::Type::kString, where).text});
      isAlias_.emplace(aliases_.back().name);
      return;
    }
    Item item;
    form_.read(value, where, item.dtype, item.shape);
    item.bytes = sizeOf(value, item, where);
    item.name = std::move(name);
    layout_.items.push_back(std::move(item));
  }

  uint64_t sizeOf(const Value& value, const Item& item, const std::string& where) const {
    const std::optional<uint64_t> known = form_.bytesOf(item.dtype, item.shape, where);
    const bool given = value.find("bytes") != nullptr;
    if (!known && !given) throw wrong(where + " has dtype " + item.dtype + ", which is not known").value(item.dtype).wayOut("say its size in \"bytes\"");
    if (!given) return *known;
    const uint64_t bytes = form_.need(value, "bytes", Value::Type::kInteger, where).integer;
    if (known && *known != bytes) {
      throw wrong(where + " has " + std::to_string(bytes) + " bytes; its dtype and shape need " + std::to_string(*known)).value(std::to_string(bytes)).limit(std::to_string(*known));
    }
    return bytes;
  }

  // An alias becomes a row like the one whose bytes it names.
  void addAliases() {
    layout_.items.reserve(layout_.items.size() + aliases_.size());
    for (const Alias& alias : aliases_) {
      const auto found = indexOf_.find(alias.of);
      if (found == indexOf_.end() || isAlias_.contains(alias.of)) {
        throw wrong("alias " + json::quote(alias.name) + " names " + json::quote(alias.of) + ", which is no tensor of the list").value(alias.of).wayOut("name a tensor that has bytes of its own");
      }
      Item item = layout_.items[found->second];
      item.name = alias.name;
      layout_.items.push_back(std::move(item));
    }
  }

  // Of names with the same bytes the first one, by name bytes, has the row; the others point to it.
  void resolveAliases() {
    std::unordered_map<std::string_view, std::string_view> tensorOf;
    for (const Alias& alias : aliases_) tensorOf[alias.name] = alias.of;
    std::unordered_map<std::string_view, uint32_t> firstOf;
    for (uint32_t i = 0; i < layout_.items.size(); i++) {
      const std::string_view name = layout_.items[i].name;
      const auto alias = tensorOf.find(name);
      layout_.items[i].alias = firstOf.emplace(alias == tensorOf.end() ? name : alias->second, i).first->second;
    }
  }

  void place() {
    uint64_t end = 0;
    for (uint32_t i = 0; i < layout_.items.size(); i++) {
      Item& item = layout_.items[i];
      if (item.alias != i) {
        item.segment = layout_.items[item.alias].segment;
        item.offset = layout_.items[item.alias].offset;
        continue;
      }
      if (item.bytes == 0) continue;
      if (item.bytes > kMaxObjectBytes) throw tooLarge();
      const uint64_t aligned = (end + kItemAlignmentBytes - 1) / kItemAlignmentBytes * kItemAlignmentBytes;
      if (layout_.segments.empty() || (end > 0 && aligned + item.bytes > kSegmentBytes)) {
        begin();
        item.offset = 0;
      } else {
        item.offset = aligned;
      }
      item.segment = static_cast<uint32_t>(layout_.segments.size() - 1);
      end = layout_.segments.back().bytes = item.offset + item.bytes;
    }
    if (layout_.segments.empty()) begin();
    layout_.chunkBytes = chunkBytesFor(layout_.totalBytes());
  }

  static Fault tooLarge() { return wrong("the tensors have more than " + std::to_string(kMaxObjectBytes) + " bytes").limit(std::to_string(kMaxObjectBytes)); }

  void begin() {
    if (layout_.segments.size() >= kMaxSegments) {
      throw wrong("it needs more than " + std::to_string(kMaxSegments) + " segments").limit(std::to_string(kMaxSegments));
    }
    if (layout_.totalBytes() > kMaxObjectBytes) throw tooLarge();
    layout_.segments.emplace_back();
  }

  const TensorForm form_;
  Layout layout_;
  std::vector<Alias> aliases_;
  std::unordered_map<std::string, size_t> indexOf_;
  std::unordered_set<std::string> isAlias_;
};

}  // namespace

Layout readTensorList(int descriptor, uint64_t listBytes, Algorithm algorithm) {
  if (listBytes > kMaxTensorListBytes) {
    throw wrong("it has " + std::to_string(listBytes) + " bytes; at most " + std::to_string(kMaxTensorListBytes) + " are read")
        .value(std::to_string(listBytes)).limit(std::to_string(kMaxTensorListBytes));
  }
  std::string text(listBytes, '\0');
  text.resize(files::readFully(descriptor, reinterpret_cast<uint8_t*>(text.data()), listBytes, 0, "the list of tensors"));
  try {
    return ListReader(algorithm).read(text);
  } catch (const Fault& fault) {
    if (!fault.field().empty()) throw;
    throw wrong(std::string("it is ") + fault.what());
  }
}

}  // namespace weightline
