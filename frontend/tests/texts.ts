import { ROOMS, translation } from "../src/lib/i18n.svelte";

// Units are tested without the page that would load their texts.
await translation.need(ROOMS);
