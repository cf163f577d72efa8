import type { DescField, DescMessage } from "@bufbuild/protobuf";

/** How deep protobuf-es follows messages in messages, by default. */
export const DEPTH_MAX = 100;

const fieldsByNumber = new WeakMap<DescMessage, Map<number, DescField>>();

/** The type's field of this number; undefined when it has none. */
export function fieldOf(type: DescMessage, number: number): DescField | undefined {
  let fields = fieldsByNumber.get(type);
  if (fields === undefined) {
    fields = new Map(type.fields.map((field) => [field.number, field]));
    fieldsByNumber.set(type, fields);
  }
  return fields.get(number);
}
