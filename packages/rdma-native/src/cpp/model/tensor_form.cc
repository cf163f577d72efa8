#include "model/tensor_form.h"

#include <unordered_map>

#include "layout/layout.h"

namespace weightline {

namespace {

using json::Value;

constexpr size_t kMaxDtypeBytes = 64;

// Bits of one element, by the dtype names of the safetensors format.
std::optional<uint64_t> bitsOf(std::string_view dtype) {
  static const std::unordered_map<std::string_view, uint64_t> kBits = {
      {"BOOL", 8},     {"F4", 4},       {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},           {"I8", 8},           {"F8_E5M2", 8}, {"F8_E4M3", 8},
      {"F8_E8M0", 8},  {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},         {"F16", 16},         {"BF16", 16},   {"I32", 32},
      {"U32", 32},     {"F32", 32},     {"C64", 64},    {"F64", 64},    {"I64", 64},         {"U64", 64}};
  const auto found = kBits.find(dtype);
  return found == kBits.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace

void TensorForm::checkName(const std::string& name, const std::string& where) const {
  if (name.size() <= kMaxNameBytes) return;
  throw fault_("the name of " + where.substr(0, 80) + "... has " + std::to_string(name.size()) + " bytes; at most " + std::to_string(kMaxNameBytes) + " are taken")
      .value(std::to_string(name.size())).limit(std::to_string(kMaxNameBytes));
}

const Value& TensorForm::need(const Value& object, const char* key, Value::Type type, const std::string& where) const {
  const Value* value = nullptr;
  for (const auto& [name, entry] : object.object) {
    if (name != key) continue;
    if (value != nullptr) throw fault_(where + " has " + key + " twice");
    value = &entry;
  }
  if (value == nullptr || !value->is(type)) throw fault_(where + " has no valid " + key);
  return *value;
}

void TensorForm::read(const Value& object, const std::string& where, std::string& dtype, std::vector<uint64_t>& shape) const {
  dtype = need(object, "dtype", Value::Type::kString, where).text;
  if (dtype.empty() || dtype.size() > kMaxDtypeBytes) throw fault_(where + " has a dtype of " + std::to_string(dtype.size()) + " bytes");
  const Value& dims = need(object, "shape", Value::Type::kArray, where);
  if (dims.array.size() > kMaxRank) {
    throw fault_(where + " has rank " + std::to_string(dims.array.size()) + "; at most " + std::to_string(kMaxRank) + " is taken").limit(std::to_string(kMaxRank));
  }
  for (const Value& dim : dims.array) {
    if (!dim.is(Value::Type::kInteger)) throw fault_(where + " has a dimension that is not a whole number from 0 to 2^64 - 1: " + dim.text).value(dim.text);
    shape.push_back(dim.integer);
  }
}

std::optional<uint64_t> TensorForm::bytesOf(std::string_view dtype, const std::vector<uint64_t>& shape, const std::string& where) const {
  const std::optional<uint64_t> bits = bitsOf(dtype);
  if (!bits) return std::nullopt;
  uint64_t total = *bits;
  for (const uint64_t dim : shape) {
    if (__builtin_mul_overflow(total, dim, &total)) throw fault_(where + " has a shape whose size passes 2^64 bits");
  }
  if (total % 8 != 0) {
    throw fault_(where + " of dtype " + std::string(dtype) + " has " + std::to_string(total) + " bits, which is not whole bytes").value(std::to_string(total));
  }
  return total / 8;
}

}  // namespace weightline
