#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>

#include "base/fault.h"
#include "base/json.h"
#include "layout/layout.h"
#include "store/files.h"

namespace weightline {

namespace {

using json::Value;

constexpr std::string_view kLfsMark = "version https://git-lfs.github.com/spec/";
constexpr uint64_t kLfsPointerMaxBytes = 1024;

// Bits of one element, by the dtype names of the safetensors format.
std::optional<uint64_t> bitsOf(std::string_view dtype) {
  static const std::unordered_map<std::string_view, uint64_t> kBits = {
      {"BOOL", 8},     {"F4", 4},       {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},           {"I8", 8},           {"F8_E5M2", 8}, {"F8_E4M3", 8},
      {"F8_E8M0", 8},  {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},         {"F16", 16},         {"BF16", 16},   {"I32", 32},
      {"U32", 32},     {"F32", 32},     {"C64", 64},    {"F64", 64},    {"I64", 64},         {"U64", 64}};
  const auto found = kBits.find(dtype);
  return found == kBits.end() ? std::nullopt : std::optional(found->second);
}

class HeaderReader {
 public:
  HeaderReader(const std::string& path, uint64_t dataBytes) : path_(path), dataBytes_(dataBytes) {}

  SafetensorsHeader read(std::string_view text, uint64_t dataAt) {
    json::parseMembers(text, [&](std::string name, Value value) { member(std::move(name), value); });
    std::stable_sort(header_.tensors.begin(), header_.tensors.end(),
                     [](const auto& a, const auto& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    checkCoverage();
    for (SafetensorsTensor& tensor : header_.tensors) {
      tensor.begin += dataAt;
      tensor.end += dataAt;
    }
    return std::move(header_);
  }

 private:
  Fault fault(const std::string& what) const { return Fault(Code::kCorrupt, path_ + ": " + what).field(path_); }

  void member(std::string name, const Value& value) {
    if (name == "__metadata__") {
      metadata(value);
      return;
    }
    const std::string where = "tensor " + json::quote(name);
    if (!value.is(Value::Type::kObject)) throw fault(where + " is not described by an object");
    if (name.size() > kMaxNameBytes) {
      throw fault("the name of " + where.substr(0, 80) + "... has " + std::to_string(name.size()) + " bytes; at most " + std::to_string(kMaxNameBytes) + " are taken")
          .value(std::to_string(name.size())).limit(std::to_string(kMaxNameBytes));
    }
    SafetensorsTensor tensor;
    tensor.name = std::move(name);
    readDtypeAndShape(tensor, value, where);
    readOffsets(tensor, value, where);
    const auto [first, fresh] = byName_.emplace(tensor.name, header_.tensors.size());
    if (!fresh) {
      const SafetensorsTensor& other = header_.tensors[first->second];
      throw fault(where + " appears twice: at " + range(other) + " and at " + range(tensor)).value(range(tensor));
    }
    if (header_.tensors.size() >= kMaxItems) throw fault("more than " + std::to_string(kMaxItems) + " tensors").limit(std::to_string(kMaxItems));
    header_.tensors.push_back(std::move(tensor));
  }

  void metadata(const Value& value) {
    if (metadataSeen_) throw fault("__metadata__ appears twice");
    metadataSeen_ = true;
    if (value.is(Value::Type::kNull)) return;
    bool strings = value.is(Value::Type::kObject);
    for (const auto& [key, entry] : value.object) strings = strings && entry.is(Value::Type::kString);
    if (!strings) throw fault("__metadata__ is not an object of strings");
  }

  static std::string range(const SafetensorsTensor& tensor) { return std::to_string(tensor.begin) + "-" + std::to_string(tensor.end); }

  const Value& need(const Value& object, const char* key, Value::Type type, const std::string& where) const {
    const Value* value = nullptr;
    for (const auto& [name, entry] : object.object) {
      if (name != key) continue;
      if (value != nullptr) throw fault(where + " has " + key + " twice");
      value = &entry;
    }
    if (value == nullptr || !value->is(type)) throw fault(where + " has no valid " + key);
    return *value;
  }

  void readDtypeAndShape(SafetensorsTensor& tensor, const Value& value, const std::string& where) const {
    tensor.dtype = need(value, "dtype", Value::Type::kString, where).text;
    if (tensor.dtype.empty() || tensor.dtype.size() > 64) throw fault(where + " has a dtype of " + std::to_string(tensor.dtype.size()) + " bytes");
    const Value& shape = need(value, "shape", Value::Type::kArray, where);
    if (shape.array.size() > kMaxRank) {
      throw fault(where + " has rank " + std::to_string(shape.array.size()) + "; at most " + std::to_string(kMaxRank) + " is taken").limit(std::to_string(kMaxRank));
    }
    for (const Value& dim : shape.array) {
      if (!dim.is(Value::Type::kInteger)) throw fault(where + " has a dimension that is not a whole number from 0 to 2^64 - 1: " + dim.text).value(dim.text);
      tensor.shape.push_back(dim.integer);
    }
  }

  void readOffsets(SafetensorsTensor& tensor, const Value& value, const std::string& where) {
    const Value& offsets = need(value, "data_offsets", Value::Type::kArray, where);
    if (offsets.array.size() != 2 || !offsets.array[0].is(Value::Type::kInteger) || !offsets.array[1].is(Value::Type::kInteger)) {
      throw fault(where + " has data_offsets that are not two whole numbers");
    }
    tensor.begin = offsets.array[0].integer;
    tensor.end = offsets.array[1].integer;
    if (tensor.begin > tensor.end) throw fault(where + " has offsets " + range(tensor) + " that end before they begin").value(range(tensor));
    const std::optional<uint64_t> bits = bitsOf(tensor.dtype);
    if (!bits) {
      if (unknown_.insert(tensor.dtype).second) header_.warnings.push_back(path_ + ": dtype " + tensor.dtype + " is not known: its tensors are carried by their offsets");
      return;
    }
    uint64_t total = *bits;
    for (const uint64_t dim : tensor.shape) {
      if (__builtin_mul_overflow(total, dim, &total)) throw fault(where + " has a shape whose size passes 2^64 bits");
    }
    if (total % 8 != 0) throw fault(where + " of dtype " + tensor.dtype + " has " + std::to_string(total) + " bits, which is not whole bytes").value(std::to_string(total));
    if (total / 8 != tensor.end - tensor.begin) {
      throw fault(where + " has " + std::to_string(tensor.end - tensor.begin) + " bytes at " + range(tensor) + "; its dtype and shape need " + std::to_string(total / 8))
          .value(std::to_string(tensor.end - tensor.begin)).limit(std::to_string(total / 8));
    }
  }

  // The tensors must cover the data without a hole or an overlap.
  void checkCoverage() const {
    uint64_t at = 0;
    const SafetensorsTensor* before = nullptr;
    for (const SafetensorsTensor& tensor : header_.tensors) {
      const std::string where = "tensor " + json::quote(tensor.name) + " at " + range(tensor);
      if (tensor.begin < at) throw fault(where + " overlaps tensor " + json::quote(before->name) + " at " + range(*before)).value(range(tensor));
      if (tensor.begin > at) throw fault(where + " leaves a hole: bytes " + std::to_string(at) + "-" + std::to_string(tensor.begin) + " belong to nobody").value(range(tensor));
      at = tensor.end;
      before = &tensor;
    }
    if (at != dataBytes_) {
      const bool shorter = dataBytes_ < at;
      throw Fault(Code::kRefused, path_ + " is " + (shorter ? "shorter" : "longer") + " than its header says: tensors end at byte " + std::to_string(at) + " of the data, the file has " +
                                      std::to_string(dataBytes_))
          .field(path_).value(std::to_string(dataBytes_)).limit(std::to_string(at)).wayOut(shorter ? "incomplete download? fetch the file again" : "fetch the file again");
    }
  }

  const std::string path_;
  const uint64_t dataBytes_;
  SafetensorsHeader header_;
  std::unordered_map<std::string, size_t> byName_;
  std::set<std::string> unknown_;
  bool metadataSeen_ = false;
};

// A pointer of Git LFS has the model's name but is three lines of text.
void refuseLfsPointer(int descriptor, uint64_t fileBytes, const std::string& path) {
  if (fileBytes > kLfsPointerMaxBytes) return;
  std::string text(fileBytes, '\0');
  text.resize(files::readFully(descriptor, reinterpret_cast<uint8_t*>(text.data()), text.size(), 0, path));
  if (!text.starts_with(kLfsMark)) return;
  // Digits alone: what else follows may be no text.
  const size_t at = text.find("\nsize ");
  const std::string digits = at == std::string::npos ? "" : text.substr(at + 6, text.find_first_not_of("0123456789", at + 6) - at - 6);
  const std::string size = digits.empty() ? "an unknown number of" : digits;
  throw Fault(Code::kRefused, path + " is a Git LFS pointer for " + size + " bytes, not the file itself")
      .field(path).value("a pointer of " + std::to_string(fileBytes) + " bytes").limit(size + " bytes").wayOut("run `git lfs pull` in its repository, or download the file");
}

}  // namespace

SafetensorsHeader readSafetensorsHeader(int descriptor, uint64_t fileBytes, const std::string& path) {
  refuseLfsPointer(descriptor, fileBytes, path);
  std::array<uint8_t, 8> length{};
  if (files::readFully(descriptor, length.data(), length.size(), 0, path) < length.size()) {
    throw Fault(Code::kCorrupt, path + " has " + std::to_string(fileBytes) + " bytes; a safetensors file begins with the 8 bytes of its header's length")
        .field(path).value(std::to_string(fileBytes)).limit("8 or more").wayOut("fetch the file again");
  }
  uint64_t headerBytes = 0;
  std::memcpy(&headerBytes, length.data(), sizeof(headerBytes));
  if (headerBytes > kMaxSafetensorsHeaderBytes) {
    throw Fault(Code::kRefused, path + ": its header says that it has " + std::to_string(headerBytes) + " bytes; at most " + std::to_string(kMaxSafetensorsHeaderBytes) + " are read")
        .field(path).value(std::to_string(headerBytes)).limit(std::to_string(kMaxSafetensorsHeaderBytes)).wayOut("is it a safetensors file? stock readers stop there too");
  }
  if (headerBytes > fileBytes - length.size()) {
    throw Fault(Code::kRefused, path + " is shorter than its header says: the header alone has " + std::to_string(headerBytes) + " bytes, the file " + std::to_string(fileBytes))
        .field(path).value(std::to_string(fileBytes)).limit(std::to_string(headerBytes + length.size())).wayOut("incomplete download? fetch the file again");
  }
  std::string text(headerBytes, '\0');
  text.resize(files::readFully(descriptor, reinterpret_cast<uint8_t*>(text.data()), headerBytes, length.size(), path));
  const uint64_t dataAt = length.size() + headerBytes;
  if (text.empty() || text.front() != '{') throw Fault(Code::kCorrupt, path + ": its header does not begin with '{'").field(path).wayOut("is it a safetensors file?");
  try {
    return HeaderReader(path, fileBytes - dataAt).read(text, dataAt);
  } catch (const Fault& fault) {
    if (!fault.field().empty()) throw;
    throw Fault(Code::kCorrupt, path + ": its header is " + fault.what()).field(path).value(fault.value());
  }
}

}  // namespace weightline
