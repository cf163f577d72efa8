import { isIP, isIPv6 } from "node:net";
import type { Fault } from "./configuration/option.ts";
import { toWeightlineError, WeightlineError } from "./error.ts";

/** A host and a port; IPv6 without brackets. */
export interface NetworkAddress {
  host: string;
  port: number;
}

const PORT_MAX = 65535;

/** "host:port", IPv6 in brackets. */
export function formatAddress({ host, port }: NetworkAddress): string {
  return `${isIPv6(host) ? `[${host}]` : host}:${port}`;
}

/**
 * Parses "host:port". `http://` and `https://` in front, and a `/` behind, are dropped: existing users' variables have them.
 * `field` is what the value was given as, for the error.
 */
export function parseAddress(text: string, field: string): NetworkAddress {
  const bare = text
    .trim()
    .replace(/^[a-z]+:\/\//i, "")
    .replace(/\/+$/, "");
  const match = /^(?:\[([^\]\s,;/]+)\]|([^:[\]\s,;/]+)):(\d{1,5})$/.exec(bare);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || port < 1 || port > PORT_MAX) {
    throw new WeightlineError("InvalidArgument", `${field} "${text}" is not host:port`, {
      field,
      value: text,
      limit: `host:port with a port from 1 to ${PORT_MAX}, IPv6 in brackets`,
      wayOut: `write it as host:port, e.g. ${bare.includes(":") && isIP(bare) === 6 ? `[${bare}]:8001` : "localhost:8001"}`,
    });
  }
  return { host, port };
}

/** Comma-separated addresses, at least one. An empty part is an error: it is a variable that was not set. */
export function parseAddresses(text: string, field: string): NetworkAddress[] {
  const parts = text.split(",");
  const empty = parts.filter((part) => part.trim() === "").length;
  if (empty > 0) {
    const what = empty === parts.length ? "names no address" : "has an empty part between its commas";
    throw new WeightlineError("InvalidArgument", `${field} "${text}" ${what}`, {
      field,
      value: text,
      limit: "host:port, several with one comma between two",
      wayOut: "give host:port, e.g. localhost:8001",
    });
  }
  return parts.map((part) => parseAddress(part, field));
}

/** The check of an option that holds such a list. */
export function checkAddresses(text: string): Fault | undefined {
  try {
    parseAddresses(text, "the address list");
    return undefined;
  } catch (error) {
    const { message, wayOut } = toWeightlineError(error);
    return { message, wayOut };
  }
}

/** True for "::" and "0.0.0.0": every address of the machine. */
export function isWildcard(host: string): boolean {
  return host === "::" || host === "0.0.0.0";
}

const LOOPBACK_V4 = /^127(\.\d{1,3}){3}$/;

/** True for names and addresses that only this machine reaches. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || LOOPBACK_V4.test(host);
}
