/** Milliseconds for `vi.waitFor`, whose own second is less than a busy machine takes to load a module. */
export const PATIENCE = 15_000;
