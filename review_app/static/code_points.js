// The browser counts UTF-16 units, our spans count Unicode code points. This is the one place where the first becomes the
// second; the other way is never needed, because text is drawn from arrays of code points.

/** How many code points lie before a UTF-16 offset; inside a surrogate pair it counts the pair as before. */
export function codePointOffset(text, utf16Offset) {
  let offset = 0;
  for (let at = 0; at < utf16Offset; offset += 1) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return offset;
}
