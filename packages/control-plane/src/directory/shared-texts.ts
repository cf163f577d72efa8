/** Texts of which there are few and many copies: each is kept once. */
export interface SharedTexts {
  /** The same text, as the one that came first. */
  shared(text: string): string;
}

/** Beyond, texts are not remembered: then they are not few. */
const TEXTS_MAX = 1000;
const TEXT_MAX_UNITS = 64;

export function createSharedTexts(): SharedTexts {
  const texts = new Map<string, string>();
  return {
    shared(text) {
      const known = texts.get(text);
      if (known === undefined && texts.size < TEXTS_MAX && text.length <= TEXT_MAX_UNITS) {
        texts.set(text, text);
      }
      return known ?? text;
    },
  };
}
