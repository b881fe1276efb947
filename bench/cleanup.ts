type Undo = () => Promise<void> | void

/**
 * What must be undone however a benchmark ends: children ended, folders removed. In reverse order; one that fails does not keep the others from
 * their turn.
 */
export class Cleanup implements AsyncDisposable {
  readonly #undos: Set<Undo> = new Set()

  /** Returns how to forget it, for what has been undone before. */
  add(undo: Undo): () => void {
    this.#undos.add(undo)
    return () => {
      this.#undos.delete(undo)
    }
  }

  async run(): Promise<void> {
    const undos = [...this.#undos].reverse()
    this.#undos.clear()
    for (const undo of undos) {
      try {
        await undo()
      } catch (error) {
        console.error('cleaning up failed:', error)
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.run()
  }
}
