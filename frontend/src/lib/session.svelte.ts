import { ApiError, api, whenUnauthorized } from "./api";
import type { Me, User } from "./types";

/** Whether somebody was logged in here lately: then it is worth asking for things before the server says who. */
const MEMBER = "canopy.member";

export function wasLoggedIn(): boolean {
  return localStorage.getItem(MEMBER) !== null;
}

function remember(user: User | null): void {
  if (user) localStorage.setItem(MEMBER, "1");
  else localStorage.removeItem(MEMBER);
}

/** Who is logged in. `user` is undefined until the server said so, and null when nobody is. */
class Session {
  user = $state<User | null | undefined>(undefined);
  defaultModel = $state<string | null>(null);
  /** How else one may log in. */
  signOn = $state<Me["sign_on"]>(null);
  #afterLogout: string | null = null;
  /** The session ended while somebody worked: the login page says so. */
  expired = $state(false);
  problem = $state<ApiError | null>(null);

  async load(): Promise<void> {
    this.problem = null;
    try {
      const me = await api.me();
      this.user = me.user;
      remember(me.user);
      this.defaultModel = me.default_model;
      this.signOn = me.sign_on;
      this.#afterLogout = me.after_logout;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error;
    }
  }

  /** Throws `ApiError` when the name or the password is wrong. */
  async login(username: string, password: string): Promise<void> {
    const { user } = await api.login(username, password);
    this.expired = false;
    this.user = user;
    await this.load();
  }

  async logout(): Promise<void> {
    await api.logout();
    remember(null);
    if (this.#afterLogout) {
      location.assign(this.#afterLogout);
      return;
    }
    this.user = null;
    await this.#learnSignOn();
  }

  /** The server no longer knows us. */
  expire(): void {
    if (this.user) this.expired = true;
    this.user = null;
    remember(null);
    void this.#learnSignOn();
  }

  /** For the login page. Without an answer there is only the password. */
  async #learnSignOn(): Promise<void> {
    try {
      this.signOn = (await api.me()).sign_on;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
  }
}

export const session = new Session();
whenUnauthorized(() => session.expire());
