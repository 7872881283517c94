/** Where the same is asked again and again, what the latest request brings counts; an earlier one may be slower. */
export class Latest {
  #count = 0;

  /** Call it before a request; the function that it returns says whether no other has begun since. */
  begin(): () => boolean {
    this.#count += 1;
    const mine = this.#count;
    return () => mine === this.#count;
  }
}
