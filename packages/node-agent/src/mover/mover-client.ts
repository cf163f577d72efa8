import type { MoverOrder, MoverReport } from "@weightline/rdma-native";

/** An order without its id, which the client gives. */
export type OrderBody = MoverOrder extends infer Order ? (Order extends MoverOrder ? Omit<Order, "id"> : never) : never;

export interface OrderOptions {
  /** Cancels the order in the mover; the promise then rejects with Cancelled. */
  signal?: AbortSignal;
  onProgress?: (report: MoverReport) => void;
}

/** Gives orders to the mover, whichever process that is now. */
export interface MoverClient {
  /**
   * Settles with the order's last report. Rejects with the fault as WeightlineError; `MoverLostError` when the mover died,
   * and the same order may be given again.
   */
  order(body: OrderBody, options?: OrderOptions): Promise<MoverReport>;
  /** True after the agent's stop: no order is taken any more. */
  closed(): boolean;
}
