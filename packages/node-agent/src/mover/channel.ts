import type { MoverOptions, MoverOrder, MoverReport } from "@weightline/rdma-native";

/** Version of the messages on the channel between agent and mover. */
export const CHANNEL_VERSION = 1;

/** From the agent: the first message starts the mover, all others are orders. */
export type ToMover = { version: number; start: MoverOptions } | { version: number; order: MoverOrder };
/** To the agent. */
export type FromMover =
  | { address: string }
  | { failed: { code: string; message: string; field: string; value: string; wayOut: string } }
  | { report: MoverReport };
