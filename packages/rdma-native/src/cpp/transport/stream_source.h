// A peer's mover as the source of a holding: TCP streams, one thread each (PROTOCOL.md).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "transport/handshake.h"
#include "transport/source.h"

namespace weightline {

struct StreamTicket {
  TicketId id{};
  Secret secret{};
};

// What a child was told about the peer's holding; anything else that comes is not believed.
struct StreamPeer {
  std::string endpoint;
  std::vector<StreamTicket> tickets;  // one stream each
  DigestValue layoutDigest{};
  uint64_t layoutBytes = 0;
  uint64_t totalBytes = 0;
  int stallMs = 5000;
};

// A fault that says that the peer itself is not to be believed: bytes, lengths or digests that it made up.
class DistrustFault : public Fault {
 public:
  using Fault::Fault;
  explicit DistrustFault(const Fault& fault) : Fault(fault) {}
};

class StreamSource : public Source {
 public:
  explicit StreamSource(StreamPeer peer) : peer_(std::move(peer)) {}

  // Opens the first stream and gets the layout by its digest, fully checked. Before fill, when the holding is new.
  std::vector<uint8_t> fetchLayout(FillCounters& counters, const Cancel& cancel);
  // Brings all missing chunks over all tickets' streams. A wrong chunk is never written: the peer is told, and a
  // DistrustFault ends the fill.
  void fill(FillContext& context) override;
  // The peer's object digest: waits until the peer is complete itself. After fill.
  DigestValue fetchObjectDigest(FillCounters& counters, const Cancel& cancel);

 private:
  class Stream;
  Stream& firstStream(const Cancel& cancel);

  const StreamPeer peer_;
  std::shared_ptr<Stream> first_;
};

}  // namespace weightline
