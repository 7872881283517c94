// @vitest-environment jsdom
import { flushSync, mount, unmount } from "svelte";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import Blocks from "../src/lib/markdown/Blocks.svelte";

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
  document.body.replaceChildren();
});

it("draws words that come seldom as well as those that come at once", () => {
  const props = $state({ text: "one", live: true });
  const component = mount(Blocks, { target: document.body, props });
  flushSync();
  expect(document.body.textContent.trim()).toBe("one");
  for (const word of ["two", "three", "four"]) {
    props.text += ` ${word}`; // at once after another, while the next drawing is due
    flushSync();
    vi.advanceTimersByTime(20);
    props.text += ` and ${word}`;
    flushSync();
    vi.advanceTimersByTime(1000); // nothing comes for a while
    expect(document.body.textContent.trim()).toBe(props.text);
  }
  props.text += " five";
  props.text += " six";
  props.live = false;
  flushSync();
  expect(document.body.textContent.trim()).toBe(props.text);
  void unmount(component);
});
