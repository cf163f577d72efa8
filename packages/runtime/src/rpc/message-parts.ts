import { create, type DescField, type DescMessage, type MessageShape, mergeFromBinary } from "@bufbuild/protobuf";
import { DEPTH_MAX, fieldOf, isEncodedAs } from "./message-fields.ts";
import { WireCursor } from "./wire-cursor.ts";

/** Bytes that are decoded in one go: a thousand values at most, of at least two bytes each. */
const PART_BYTES = 2048;

type AnyMessage = Record<string, unknown>;

/** Whether a field's values can be decoded one after another: not those that protobuf-es gives a form of its own. */
function holdsMessages(field: DescField | undefined): field is DescField & { message: DescMessage } {
  return (
    field?.message !== undefined && field.fieldKind !== "map" && !field.message.typeName.startsWith("google.protobuf.")
  );
}

/** Where the next value of the field is decoded to: a new element of a list, what is there already of a single one. */
function targetOf(message: AnyMessage, field: DescField & { message: DescMessage }): AnyMessage {
  const made = () => create(field.message) as unknown as AnyMessage;
  if (field.fieldKind === "list") {
    const element = made();
    (message[field.localName] as unknown[]).push(element);
    return element;
  }
  if (field.oneof === undefined) {
    message[field.localName] ??= made();
    return message[field.localName] as AnyMessage;
  }
  const chosen = message[field.oneof.localName] as { case?: string; value?: unknown };
  if (chosen.case !== field.localName) {
    message[field.oneof.localName] = { case: field.localName, value: made() };
  }
  return (message[field.oneof.localName] as { value: AnyMessage }).value;
}

/**
 * Decodes an encoded message into `target` like protobuf-es's mergeFromBinary, a part with each step: of what a peer sends no
 * more than a thousand values keep everybody else waiting. Throws at the step that comes to it what mergeFromBinary throws,
 * and for what no encoder writes.
 */
export function* decodeInParts<Type extends DescMessage>(
  type: Type,
  target: MessageShape<Type>,
  bytes: Uint8Array,
  readUnknownFields: boolean,
): Generator<undefined, void> {
  yield* partsOf(type, target as unknown as AnyMessage, bytes, readUnknownFields, 0);
}

function* partsOf(
  type: DescMessage,
  target: AnyMessage,
  bytes: Uint8Array,
  readUnknownFields: boolean,
  depth: number,
): Generator<undefined, void> {
  const cursor = new WireCursor(bytes);
  let partFrom = 0;
  let partBytes = 0;
  const decodeTo = (end: number) => {
    if (end > partFrom) {
      const part = bytes.subarray(partFrom, end);
      mergeFromBinary(type, target as unknown as MessageShape<DescMessage>, part, { readUnknownFields });
    }
    partFrom = end;
    partBytes = 0;
  };
  while (cursor.at < bytes.length) {
    const fieldFrom = cursor.at;
    const { number, wireType } = cursor.tag();
    const contentFrom = cursor.skip(wireType);
    const field = fieldOf(type, number);
    if (field !== undefined && !isEncodedAs(field, wireType)) {
      throw new Error(`its field ${number} is not encoded as its type is`);
    }
    const contentBytes = cursor.at - contentFrom;
    if (contentBytes > PART_BYTES && holdsMessages(field) && depth < DEPTH_MAX) {
      decodeTo(fieldFrom);
      yield;
      const content = bytes.subarray(contentFrom, cursor.at);
      yield* partsOf(field.message, targetOf(target, field), content, readUnknownFields, depth + 1);
      partFrom = cursor.at;
      continue;
    }
    // A text counts as one value, however long it is.
    partBytes += contentBytes > PART_BYTES ? 2 : cursor.at - fieldFrom;
    if (partBytes >= PART_BYTES) {
      decodeTo(cursor.at);
      yield;
    }
  }
  decodeTo(bytes.length);
}
