import { type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { WireType } from "@bufbuild/protobuf/wire";

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

function scalarWireType(scalar: ScalarType): number {
  switch (scalar) {
    case ScalarType.STRING:
    case ScalarType.BYTES:
      return WireType.LengthDelimited;
    case ScalarType.DOUBLE:
    case ScalarType.FIXED64:
    case ScalarType.SFIXED64:
      return WireType.Bit64;
    case ScalarType.FLOAT:
    case ScalarType.FIXED32:
    case ScalarType.SFIXED32:
      return WireType.Bit32;
    default:
      return WireType.Varint;
  }
}

/** How one value of the field is encoded. */
export function wireTypeOf(field: DescField): number {
  if (field.fieldKind === "map" || field.message !== undefined) {
    return WireType.LengthDelimited;
  }
  return field.scalar === undefined ? WireType.Varint : scalarWireType(field.scalar);
}

/**
 * Whether a value of this wire type is the field's, lists in their packed form too. protobuf-es does not look, and takes for
 * one thing what is another.
 */
export function isEncodedAs(field: DescField, wireType: number): boolean {
  return wireType === wireTypeOf(field) || (field.fieldKind === "list" && wireType === WireType.LengthDelimited);
}
