import { computeSourceId } from "@weightline/proto";
import type { AnnounceRequest } from "@weightline/proto/node";
import { parseAddress, WeightlineError } from "@weightline/runtime";

/** What one announce may hold; a message has at most 100 MiB anyway. */
const NAME_MAX_BYTES = 253;
const HOLDINGS_MAX = 100_000;
const IDENTITIES_MAX = 1000;
const TTL_MIN_MS = 100;
const TTL_MAX_MS = 3_600_000;
const HOLDING_ID = /^[0-9a-f]{32}$/;

function refuse(field: string, value: string, limit: string): never {
  throw new WeightlineError(
    "InvalidArgument",
    `announce.${field} ${JSON.stringify(value.slice(0, 100))} is not ${limit}`,
    { field, value: value.slice(0, 100), limit },
  );
}

/** Checks an announce before a directory sees it; throws InvalidArgument naming field, value and limit. */
export function checkAnnounce(announce: AnnounceRequest): void {
  const { node, bootId, address, ttlMs, epoch, sequence } = announce;
  if (node === "" || Buffer.byteLength(node) > NAME_MAX_BYTES) {
    refuse("node", node, `a name of 1 to ${NAME_MAX_BYTES} bytes`);
  }
  if (bootId === "" || bootId.length > NAME_MAX_BYTES) {
    refuse("boot_id", bootId, "a short random text");
  }
  parseAddress(address, "announce.address");
  if (ttlMs < TTL_MIN_MS || ttlMs > TTL_MAX_MS) {
    refuse("ttl_ms", String(ttlMs), `${TTL_MIN_MS} to ${TTL_MAX_MS}`);
  }
  if (epoch === 0n || sequence === 0n) {
    refuse(epoch === 0n ? "epoch" : "sequence", "0", "1 or more");
  }
  const holdings = announce.holdings?.holdings ?? [];
  if (holdings.length > HOLDINGS_MAX) {
    refuse("holdings", String(holdings.length), `at most ${HOLDINGS_MAX}`);
  }
  for (const [i, holding] of holdings.entries()) {
    if (!HOLDING_ID.test(holding.holdingId)) {
      refuse(`holdings[${i}].holding_id`, holding.holdingId, "32 lowercase hex digits");
    }
    if (holding.identities.length > IDENTITIES_MAX) {
      refuse(`holdings[${i}].identities`, String(holding.identities.length), `at most ${IDENTITIES_MAX}`);
    }
    for (const named of holding.identities) {
      if (named.identity === undefined || computeSourceId(named.identity) !== named.sourceId) {
        refuse(`holdings[${i}].identities.source_id`, named.sourceId, "the id of its identity");
      }
    }
  }
}
