import type { MoverReport } from "@weightline/rdma-native";
import type { MoverClient, OrderBody, OrderOptions } from "../mover/mover-client.ts";
import { MoverLostError } from "../mover/mover-process.ts";

/** A mover that dies this often with one order is killed by it. */
const ATTEMPTS = 5;

/** Gives an order again when the mover dies with it: every order finds done what is done already. */
export async function persistentOrder(
  mover: MoverClient,
  body: OrderBody,
  options: OrderOptions = {},
): Promise<MoverReport> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await mover.order(body, options);
    } catch (error) {
      if (!(error instanceof MoverLostError) || mover.closed() || attempt >= ATTEMPTS) {
        throw error;
      }
    }
  }
}
