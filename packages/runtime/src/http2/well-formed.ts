/** Capitals, what no token has, and a `:` that is not the first. */
const FORBIDDEN_IN_NAMES = /[^\x21-\x40\x5b-\x7e]|^.+:/;
const FORBIDDEN_IN_VALUES = /[\0\r\n]/;
const COLON = 58;

/** Whether names and values, in turn, are a request's (RFC 9113, section 8.2): those with `:` come first, none ends a line. */
export function isWellFormed(fields: readonly string[]): boolean {
  let isAmongFirst = true;
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i] as string;
    if (name.length === 0 || FORBIDDEN_IN_NAMES.test(name) || FORBIDDEN_IN_VALUES.test(fields[i + 1] as string)) {
      return false;
    }
    const isPseudo = name.charCodeAt(0) === COLON;
    if (isPseudo && !isAmongFirst) {
      return false;
    }
    isAmongFirst = isPseudo;
  }
  return true;
}
