/** Runs tasks one after the other, in the order they were handed over. A task that fails does not stop the next. */
export class SerialQueue {
  #tail: Promise<void> = Promise.resolve()

  run<T>(task: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(task)
    // The caller is who learns of a failure; here it only means that the next may begin.
    this.#tail = result.then(
      () => undefined,
      () => undefined,
    )
    return result
  }

  /** Resolves when everything handed over so far has ended, well or not. */
  drain(): Promise<void> {
    return this.#tail
  }
}

/**
 * Runs `task` for each item, at most `most` at once. All are run, also when some fail.
 * @throws the first failure, after the last task has ended
 */
export async function forEachLimited<T>(
  items: readonly T[],
  most: number,
  task: (item: T) => Promise<void>,
): Promise<void> {
  let next = 0
  const failures: unknown[] = []
  const work = async (): Promise<void> => {
    while (next < items.length) {
      const item = items[next++] as T // `next` was in range on this side of the await.
      try {
        await task(item)
      } catch (error) {
        failures.push(error)
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(most, items.length) }, work))
  if (failures.length > 0) throw failures[0]
}
