#include "layout/layout.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <set>

#include "base/fault.h"
#include "base/json.h"
#include "base/utf8.h"

namespace weightline {

namespace {

constexpr std::string_view kMagic = "WLLAYOUT";
constexpr size_t kPreambleBytes = 16;
constexpr size_t kMaxPathBytes = 4096;
constexpr size_t kMaxPathNameBytes = 255;
constexpr size_t kMaxDtypes = 255;

size_t padding(size_t bytes) { return (8 - bytes % 8) % 8; }

Fault corrupt(const std::string& what) { return Fault(Code::kCorrupt, "the layout is not valid: " + what).field("layout"); }

template <typename T>
void putNumber(std::vector<uint8_t>& out, T value) {
  for (size_t i = 0; i < sizeof(T); i++) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

void pad(std::vector<uint8_t>& out) { out.resize(out.size() + padding(out.size())); }

std::vector<std::string> dtypesOf(const Layout& layout) {
  std::set<std::string> names;
  for (const Item& item : layout.items) names.insert(item.dtype);
  return {names.begin(), names.end()};
}

std::string headerOf(const Layout& layout, const std::vector<std::string>& dtypes, uint64_t dims) {
  std::string text = "{\"kind\":" + json::quote(layout.kind) + ",\"algorithm\":\"" + std::string(algorithmName(layout.algorithm)) +
                     "\",\"chunk_bytes\":" + std::to_string(layout.chunkBytes) + ",\"items\":" + std::to_string(layout.items.size()) +
                     ",\"dims\":" + std::to_string(dims) + ",\"dtypes\":[";
  for (size_t i = 0; i < dtypes.size(); i++) text += (i > 0 ? "," : "") + json::quote(dtypes[i]);
  text += "],\"segments\":[";
  for (size_t i = 0; i < layout.segments.size(); i++) {
    const Segment& segment = layout.segments[i];
    text += (i > 0 ? ",{" : "{") + std::string("\"bytes\":") + std::to_string(segment.bytes);
    if (layout.kind == "files") text += ",\"path\":" + json::quote(segment.path);
    text += "}";
  }
  return text + "]}";
}

void checkLimit(uint64_t value, uint64_t limit, const std::string& what) {
  if (value > limit) {
    throw Fault(Code::kInvalidArgument, what + " " + std::to_string(value) + " exceeds the limit of " + std::to_string(limit))
        .field(what).value(std::to_string(value)).limit(std::to_string(limit));
  }
}

// Reads the columns' bytes one after another; each is padded with zeros.
class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  std::span<const uint8_t> column(uint64_t count, uint64_t width, const char* name) {
    uint64_t size = 0;
    if (__builtin_mul_overflow(count, width, &size) || size > bytes_.size() - at_) throw corrupt(std::string("column ") + name + " is cut off");
    const auto column = bytes_.subspan(at_, size);
    at_ += size;
    const size_t zeros = padding(size);
    if (zeros > bytes_.size() - at_) throw corrupt(std::string("column ") + name + " is not padded");
    for (size_t i = 0; i < zeros; i++) {
      if (bytes_[at_ + i] != 0) throw corrupt(std::string("column ") + name + " is not padded with zeros");
    }
    at_ += zeros;
    return column;
  }
  bool atEnd() const { return at_ == bytes_.size(); }

 private:
  const std::span<const uint8_t> bytes_;
  size_t at_ = 0;
};

template <typename T>
T number(std::span<const uint8_t> column, size_t index) {
  T value;
  std::memcpy(&value, column.data() + index * sizeof(T), sizeof(T));
  return value;
}

uint64_t integerMember(const json::Value& object, std::string_view name, uint64_t limit) {
  const json::Value* value = object.find(name);
  if (value == nullptr || !value->is(json::Value::Type::kInteger) || value->integer > limit) {
    throw corrupt("its header's \"" + std::string(name) + "\" is not a whole number up to " + std::to_string(limit));
  }
  return value->integer;
}

const std::string& textMember(const json::Value& object, std::string_view name) {
  const json::Value* value = object.find(name);
  if (value == nullptr || !value->is(json::Value::Type::kString)) throw corrupt("its header's \"" + std::string(name) + "\" is not a string");
  return value->text;
}

const std::vector<json::Value>& arrayMember(const json::Value& object, std::string_view name, size_t limit) {
  const json::Value* value = object.find(name);
  if (value == nullptr || !value->is(json::Value::Type::kArray) || value->array.size() > limit) {
    throw corrupt("its header's \"" + std::string(name) + "\" is not an array of at most " + std::to_string(limit));
  }
  return value->array;
}

struct Header {
  Layout layout;
  std::vector<std::string> dtypes;
  uint64_t items = 0, dims = 0;
  std::string text;
  size_t columnsAt = 0;
};

void readSegments(const json::Value& root, Layout& layout) {
  uint64_t total = 0;
  for (const json::Value& entry : arrayMember(root, "segments", kMaxSegments)) {
    Segment segment;
    segment.bytes = integerMember(entry, "bytes", INT64_MAX);
    if (layout.kind == "files") {
      segment.path = textMember(entry, "path");
      if (!safeRelativePath(segment.path)) throw corrupt("segment path " + json::quote(segment.path) + " leaves the folder or is no path");
      if (!layout.segments.empty() && layout.segments.back().path >= segment.path) throw corrupt("segment paths are not in the order of their bytes, each once");
    }
    if (__builtin_add_overflow(total, segment.bytes, &total) || total > INT64_MAX) throw corrupt("its segments' sizes overflow");
    layout.segments.push_back(std::move(segment));
  }
  // A file's path may not be a folder of another.
  for (size_t i = 0; layout.kind == "files" && i + 1 < layout.segments.size(); i++) {
    const std::string folder = layout.segments[i].path + "/";
    const auto after = std::lower_bound(layout.segments.begin(), layout.segments.end(), folder, [](const Segment& s, const std::string& p) { return s.path < p; });
    if (after != layout.segments.end() && after->path.starts_with(folder)) throw corrupt("segment path " + json::quote(layout.segments[i].path) + " is a file and a folder");
  }
  if (layout.chunkBytes != chunkBytesFor(total)) throw corrupt("chunk_bytes " + std::to_string(layout.chunkBytes) + " is not " + std::to_string(chunkBytesFor(total)));
}

json::Value parseHeader(const std::string& text) {
  try {
    return json::parse(text);
  } catch (const Fault& fault) {
    throw corrupt(std::string("its header is ") + fault.what()).value(fault.value());
  }
}

Algorithm algorithmOf(const std::string& name) {
  for (const Algorithm algorithm : {Algorithm::kXxh3, Algorithm::kSha256}) {
    if (algorithmName(algorithm) == name) return algorithm;
  }
  throw corrupt("its algorithm " + json::quote(name) + " is not known");
}

Header readHeader(std::span<const uint8_t> bytes) {
  if (bytes.size() < kPreambleBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) throw corrupt("it does not begin with WLLAYOUT");
  const auto version = number<uint32_t>(bytes.subspan(8), 0);
  if (version != kLayoutVersion) {
    throw Fault(Code::kRefused, "layout version " + std::to_string(version) + " is not known; this program reads version " + std::to_string(kLayoutVersion))
        .field("layout.version").value(std::to_string(version)).limit(std::to_string(kLayoutVersion)).wayOut("upgrade the older program");
  }
  const auto headerBytes = number<uint32_t>(bytes.subspan(12), 0);
  if (headerBytes % 8 != 0 || headerBytes > bytes.size() - kPreambleBytes) throw corrupt("its header is cut off");
  Header header;
  const std::string_view padded(reinterpret_cast<const char*>(bytes.data()) + kPreambleBytes, headerBytes);
  const size_t end = padded.find_last_not_of(' ');
  header.text = std::string(padded.substr(0, end == std::string_view::npos ? 0 : end + 1));
  if (padded.size() - header.text.size() >= 8) throw corrupt("its header has too much padding");
  header.columnsAt = kPreambleBytes + headerBytes;
  const json::Value root = parseHeader(header.text);
  if (!root.is(json::Value::Type::kObject)) throw corrupt("its header is no object");
  header.layout.kind = textMember(root, "kind");
  if (header.layout.kind != "files" && header.layout.kind != "tensors") throw corrupt("its kind " + json::quote(header.layout.kind) + " is not known");
  header.layout.algorithm = algorithmOf(textMember(root, "algorithm"));
  header.layout.chunkBytes = integerMember(root, "chunk_bytes", kMaxChunkBytes);
  header.items = integerMember(root, "items", kMaxItems);
  header.dims = integerMember(root, "dims", kMaxItems * kMaxRank);
  for (const json::Value& dtype : arrayMember(root, "dtypes", kMaxDtypes)) {
    if (!dtype.is(json::Value::Type::kString) || (!header.dtypes.empty() && header.dtypes.back() >= dtype.text)) throw corrupt("its dtypes are not sorted names");
    header.dtypes.push_back(dtype.text);
  }
  readSegments(root, header.layout);
  return header;
}

// One row's place must lie inside its segment; rows of the same bytes are aliases of the first.
void checkPlace(const Layout& layout, const Item& item, size_t row) {
  const std::string where = "item " + std::to_string(row) + " (" + json::quote(item.name) + ")";
  if (item.bytes == 0) {
    if (item.segment != 0 || item.offset != 0) throw corrupt(where + " has no bytes and is not at segment 0, offset 0");
    return;
  }
  if (item.segment >= layout.segments.size()) throw corrupt(where + " lies in segment " + std::to_string(item.segment) + " of " + std::to_string(layout.segments.size()));
  uint64_t end = 0;
  if (__builtin_add_overflow(item.offset, item.bytes, &end) || end > layout.segments[item.segment].bytes) {
    throw corrupt(where + " offset " + std::to_string(item.offset) + " + size " + std::to_string(item.bytes) + " exceeds segment " + std::to_string(item.segment) + " (" +
                  std::to_string(layout.segments[item.segment].bytes) + " bytes)");
  }
}

}  // namespace

uint64_t chunkBytesFor(uint64_t totalBytes) {
  uint64_t chunk = kMinChunkBytes;
  while (chunk < kMaxChunkBytes && chunk * 2 <= totalBytes / 16384) chunk *= 2;
  return chunk;
}

uint64_t Layout::totalBytes() const {
  return std::accumulate(segments.begin(), segments.end(), uint64_t{0}, [](uint64_t sum, const Segment& s) { return sum + s.bytes; });
}

bool safeRelativePath(std::string_view path) {
  if (path.empty() || path.size() > kMaxPathBytes || path.find('\0') != std::string_view::npos || !validUtf8(path)) return false;
  for (size_t at = 0; at <= path.size();) {
    const size_t slash = std::min(path.find('/', at), path.size());
    const std::string_view name = path.substr(at, slash - at);
    if (name.empty() || name == "." || name == ".." || name.size() > kMaxPathNameBytes) return false;
    at = slash + 1;
  }
  return true;
}

std::vector<uint8_t> encodeLayout(const Layout& layout) {
  checkLimit(layout.items.size(), kMaxItems, "count of tensors");
  checkLimit(layout.segments.size(), kMaxSegments, "count of segments");
  uint64_t dims = 0;
  for (const Item& item : layout.items) {
    checkLimit(item.name.size(), kMaxNameBytes, "bytes in the name of a tensor");
    checkLimit(item.shape.size(), kMaxRank, "rank of tensor " + json::quote(item.name));
    dims += item.shape.size();
  }
  const std::vector<std::string> dtypes = dtypesOf(layout);
  checkLimit(dtypes.size(), kMaxDtypes, "count of dtypes");
  std::string header = headerOf(layout, dtypes, dims);
  header.append(padding(header.size()), ' ');

  std::vector<uint8_t> out(kMagic.begin(), kMagic.end());
  putNumber(out, kLayoutVersion);
  putNumber(out, static_cast<uint32_t>(header.size()));
  out.insert(out.end(), header.begin(), header.end());
  const auto column = [&](auto write) {
    for (const Item& item : layout.items) write(item);
    pad(out);
  };
  column([&](const Item& item) { putNumber(out, item.offset); });
  column([&](const Item& item) { putNumber(out, item.bytes); });
  column([&](const Item& item) { for (const uint64_t dim : item.shape) putNumber(out, dim); });
  uint32_t end = 0;
  column([&](const Item& item) { putNumber(out, end += static_cast<uint32_t>(item.name.size())); });
  column([&](const Item& item) { putNumber(out, item.segment); });
  column([&](const Item& item) { putNumber(out, item.alias); });
  column([&](const Item& item) { out.push_back(static_cast<uint8_t>(std::lower_bound(dtypes.begin(), dtypes.end(), item.dtype) - dtypes.begin())); });
  column([&](const Item& item) { out.push_back(static_cast<uint8_t>(item.shape.size())); });
  column([&](const Item& item) { out.insert(out.end(), item.name.begin(), item.name.end()); });
  return out;
}

Layout decodeLayoutHeader(std::span<const uint8_t> bytes) { return readHeader(bytes).layout; }

Layout decodeLayout(std::span<const uint8_t> bytes) {
  Header header = readHeader(bytes);
  Layout& layout = header.layout;
  const uint64_t n = header.items;
  Reader reader(bytes.subspan(header.columnsAt));
  const auto offsets = reader.column(n, 8, "offset"), sizes = reader.column(n, 8, "bytes"), dims = reader.column(header.dims, 8, "dims");
  const auto ends = reader.column(n, 4, "name end"), segments = reader.column(n, 4, "segment"), aliases = reader.column(n, 4, "alias");
  const auto dtypes = reader.column(n, 1, "dtype"), ranks = reader.column(n, 1, "rank");
  const uint32_t nameBytes = n == 0 ? 0 : number<uint32_t>(ends, n - 1);
  const auto names = reader.column(nameBytes, 1, "names");
  if (!reader.atEnd()) throw corrupt("something follows its last column");

  std::vector<bool> dtypeUsed(header.dtypes.size());
  uint32_t nameAt = 0;
  uint64_t dimAt = 0;
  layout.items.reserve(n);
  for (uint64_t i = 0; i < n; i++) {
    Item item;
    const auto end = number<uint32_t>(ends, i);
    if (end < nameAt || end > nameBytes || end - nameAt > kMaxNameBytes) throw corrupt("name end of item " + std::to_string(i) + " is out of order");
    item.name.assign(reinterpret_cast<const char*>(names.data()) + nameAt, end - nameAt);
    if (!validUtf8(item.name)) throw corrupt("the name of item " + std::to_string(i) + " is not UTF-8");
    if (i > 0 && layout.items.back().name >= item.name) throw corrupt("item " + std::to_string(i) + " is not in the order of name bytes, each name once");
    nameAt = end;
    if (dtypes[i] >= header.dtypes.size()) throw corrupt("dtype of item " + std::to_string(i) + " is not in the header");
    item.dtype = header.dtypes[dtypes[i]];
    dtypeUsed[dtypes[i]] = true;
    if (ranks[i] > kMaxRank || ranks[i] > header.dims - dimAt) throw corrupt("rank of item " + std::to_string(i) + " is above its dims");
    for (uint8_t d = 0; d < ranks[i]; d++) item.shape.push_back(number<uint64_t>(dims, dimAt++));
    item.segment = number<uint32_t>(segments, i);
    item.offset = number<uint64_t>(offsets, i);
    item.bytes = number<uint64_t>(sizes, i);
    item.alias = number<uint32_t>(aliases, i);
    checkPlace(layout, item, i);
    if (item.alias > i) throw corrupt("alias of item " + std::to_string(i) + " points forward");
    if (item.alias < i) {
      const Item& first = layout.items[item.alias];
      if (first.alias != item.alias || first.segment != item.segment || first.offset != item.offset || first.bytes != item.bytes ||
          first.dtype != item.dtype || first.shape != item.shape) {
        throw corrupt("item " + std::to_string(i) + " does not repeat the row of which it is an alias");
      }
    }
    layout.items.push_back(std::move(item));
  }
  if (dimAt != header.dims) throw corrupt("its dims are more than its ranks");
  if (std::find(dtypeUsed.begin(), dtypeUsed.end(), false) != dtypeUsed.end()) throw corrupt("a dtype in its header is not used");
  if (headerOf(layout, header.dtypes, header.dims) != header.text) throw corrupt("its header is not in canonical form");
  return std::move(header.layout);
}

}  // namespace weightline
