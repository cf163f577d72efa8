// Opening a stream: both sides prove that they have the ticket's secret (PROTOCOL.md, "Opening").
#pragma once

#include <array>
#include <functional>
#include <optional>

#include "transport/connection.h"

namespace weightline {

inline constexpr int kOpeningMs = 5000;

using TicketId = std::array<uint8_t, kTicketIdBytes>;
using Secret = std::array<uint8_t, kSecretBytes>;

// The child's side. Throws PermissionDenied when the parent does not prove the secret, Refused without a common version.
void openAsChild(Connection& connection, const TicketId& id, const Secret& secret, const Cancel& cancel);

// The parent's side. `secretOf` gives the secret of a live ticket; `consume` uses it up and is false when somebody was
// faster. Throws when the child may not read.
struct TicketOffice {
  std::function<std::optional<Secret>(const TicketId&)> secretOf;
  std::function<bool(const TicketId&)> consume;
};
TicketId openAsParent(Connection& connection, const TicketOffice& office, const Cancel& cancel);

// Fills with bytes from the kernel's generator.
void randomBytes(std::span<uint8_t> bytes);

}  // namespace weightline
