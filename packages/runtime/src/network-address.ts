import { isIP, isIPv6 } from "node:net";
import { WeightlineError } from "./error.ts";

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
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(bare);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || port > PORT_MAX) {
    throw new WeightlineError("InvalidArgument", `${field} "${text}" is not host:port`, {
      field,
      value: text,
      limit: "host:port with a port up to 65535, IPv6 in brackets",
      wayOut: `write it as host:port, e.g. ${bare.includes(":") && isIP(bare) === 6 ? `[${bare}]:8001` : "localhost:8001"}`,
    });
  }
  return { host, port };
}

/** Comma-separated addresses, at least one. */
export function parseAddresses(text: string, field: string): NetworkAddress[] {
  return text
    .split(",")
    .filter((part) => part.trim() !== "")
    .map((part) => parseAddress(part, field));
}

/** True for "::" and "0.0.0.0": every address of the machine. */
export function isWildcard(host: string): boolean {
  return host === "::" || host === "0.0.0.0";
}

/** True for names and addresses that only this machine reaches. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || host.startsWith("127.");
}
