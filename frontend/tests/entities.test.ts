// @vitest-environment jsdom
import { decodeHTMLStrict as packaged } from "entities";
import { expect, it } from "vitest";
import { decodeHTMLStrict } from "../src/lib/markdown/entities";

it.each(["&amp;", "&AMP;", "&auml;", "&notin;", "&#35;", "&#X22;", "&#0;", "&#x110000;", "&nbsp;", "&NotEqualTilde;", "&ngE;", "&none;", "&amp", "&copy", "a &lt;b&gt; &", "&lt;/textarea&gt;"])(
  "reads %s as the package does",
  (text) => expect(decodeHTMLStrict(text)).toBe(packaged(text)),
);
