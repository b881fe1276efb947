import type { AssignorName } from './group-types.ts'
import { assignRange } from './range-assignor.ts'
import type { Assignor } from './subscription-pools.ts'
import { assignUniform } from './uniform-assignor.ts'

export type { AssignorName } from './group-types.ts'
export type {
  Assignor,
  AssignorInput,
  AssignorMember,
  TopicPartitions,
} from './subscription-pools.ts'

/** The ways to share partitions out. All are pure functions, and the order of members, topics and sets in the input changes nothing. */
export const ASSIGNORS: Readonly<Record<AssignorName, Assignor>> = {
  uniform: assignUniform,
  range: assignRange,
}
