/** A member's place in an {@link OrderedList}: made once, and used for every time that it comes and goes. */
export class Place<Member> {
  readonly member: Member;
  /** The list's own: the neighbours, undefined while it is in none. */
  before: Place<Member> | undefined;
  after: Place<Member> | undefined;

  constructor(member: Member) {
    this.member = member;
  }
}

/**
 * Members in the order in which they came, of whom many come and go by the thousand a second. A Set keeps such an order too,
 * but makes a new table every few insertions; a Set that lives long makes it where only full collections look, and they
 * become so many that they are what a busy server's slowest calls wait for.
 */
export class OrderedList<Member> {
  #first: Place<Member> | undefined;
  #last: Place<Member> | undefined;
  #size = 0;

  get size(): number {
    return this.#size;
  }

  /** Who is there longest. */
  get first(): Member | undefined {
    return this.#first?.member;
  }

  /** A place is in one list at most. */
  has(place: Place<Member>): boolean {
    return place.before !== undefined || this.#first === place;
  }

  /** Puts it at the end; one that is there goes there. */
  add(place: Place<Member>): void {
    if (this.#last === place) {
      return;
    }
    this.delete(place);
    place.before = this.#last;
    if (this.#last === undefined) {
      this.#first = place;
    } else {
      this.#last.after = place;
    }
    this.#last = place;
    this.#size += 1;
  }

  /** False when it was not there. */
  delete(place: Place<Member>): boolean {
    if (!this.has(place)) {
      return false;
    }
    const { before, after } = place;
    if (before === undefined) {
      this.#first = after;
    } else {
      before.after = after;
    }
    if (after === undefined) {
      this.#last = before;
    } else {
      after.before = before;
    }
    place.before = undefined;
    place.after = undefined;
    this.#size -= 1;
    return true;
  }

  /** Gives each, the longest there first; `visit` may take out the one that it has. */
  forEach(visit: (member: Member) => void): void {
    for (let place = this.#first; place !== undefined; ) {
      const { member, after } = place;
      visit(member);
      place = after;
    }
  }
}
