import { randomBytes } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { DescriptorTicketSchema } from "@weightline/proto/local";
import { type DescriptorServerHandle, native } from "@weightline/rdma-native";
import { WeightlineError } from "@weightline/runtime";
import { POD_TICKETS_MAX } from "../local/limits.ts";

/** Who gets a ticket: the process that may use it, and whose cap it counts for. */
export interface TicketTaker {
  pid: number;
  group: string;
}

/** Gives tickets for descriptors, so many to each pod that none can use up all. */
export interface TicketOffice {
  /** Throws ResourceExhausted when the group has too many that it did not use. */
  issue(taker: TicketTaker, holdingId: string, paths: string[]): MessageInitShape<typeof DescriptorTicketSchema>;
  /** A process used one of its tickets. */
  used(pid: number): void;
}

/** architecture.md: a ticket lives so long. */
export const TICKET_TTL_MS = 10_000;

interface Ticket {
  pid: number;
  expires: number;
}

export function createTicketOffice(server: () => DescriptorServerHandle, socket: string): TicketOffice {
  /** Unused ones, oldest first. */
  const waiting = new Map<string, Ticket[]>();
  /** Groups of the processes that have unused ones. */
  const groups = new Map<number, string>();

  const expire = (group: string): Ticket[] => {
    const now = performance.now();
    const left = (waiting.get(group) ?? []).filter(({ expires }) => expires > now);
    waiting.set(group, left);
    return left;
  };

  const forgetExpired = () => {
    for (const group of waiting.keys()) {
      if (expire(group).length === 0) {
        waiting.delete(group);
      }
    }
    for (const [pid, group] of groups) {
      if (!waiting.has(group)) {
        groups.delete(pid);
      }
    }
  };
  let cleaning = false;
  const cleanLater = () => {
    if (cleaning) {
      return;
    }
    cleaning = true;
    setTimeout(() => {
      cleaning = false;
      forgetExpired();
      if (waiting.size > 0) {
        cleanLater();
      }
    }, TICKET_TTL_MS).unref();
  };

  return {
    issue({ pid, group }, holdingId, paths) {
      const known = waiting.get(group)?.length ?? 0;
      const mine = known >= POD_TICKETS_MAX ? expire(group) : (waiting.get(group) ?? []);
      if (mine.length >= POD_TICKETS_MAX) {
        throw new WeightlineError("ResourceExhausted", `${group} has ${mine.length} tickets that it did not use`, {
          field: "tickets",
          value: String(mine.length),
          limit: String(POD_TICKETS_MAX),
          wayOut: `use them at the descriptor socket, or wait ${TICKET_TTL_MS / 1000} s`,
        });
      }
      const ticket = { ticketId: randomBytes(16), secret: randomBytes(32) };
      native.grantDescriptors(server(), { ...ticket, pid, ttlMs: TICKET_TTL_MS, holdingId, paths });
      mine.push({ pid, expires: performance.now() + TICKET_TTL_MS });
      waiting.set(group, mine);
      groups.set(pid, group);
      cleanLater();
      return { id: ticket.ticketId, secret: ticket.secret, socket, ttlMs: TICKET_TTL_MS };
    },
    used(pid) {
      const group = groups.get(pid);
      const mine = group === undefined ? undefined : waiting.get(group);
      const at = mine?.findIndex((ticket) => ticket.pid === pid) ?? -1;
      if (at >= 0) {
        mine?.splice(at, 1);
      }
    },
  };
}
