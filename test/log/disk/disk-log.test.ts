import { describePartitionLog } from '../../conformance/partition-log.ts'
import { makeDiskHarness } from '../../support/disk-log-harness.ts'

describePartitionLog('disk engine', () => makeDiskHarness(0))
describePartitionLog('disk engine, flushes of 300 ms', () => makeDiskHarness(300))
