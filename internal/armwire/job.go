package armwire

import "time"

// Job is properties of a job.
type Job struct {
	ActivityID         string     `json:"activityId"`
	ScenarioName       string     `json:"scenarioName"`
	FriendlyName       string     `json:"friendlyName"`
	State              string     `json:"state"` // NotStarted, InProgress, Succeeded, Failed, Cancelling, Cancelled, Suspended
	StateDescription   string     `json:"stateDescription"`
	Tasks              []Task     `json:"tasks"`
	Errors             []JobError `json:"errors"`
	StartTime          *time.Time `json:"startTime,omitempty"`
	EndTime            *time.Time `json:"endTime,omitempty"`
	AllowedActions     []string   `json:"allowedActions"` // Cancel, Restart, Resume
	TargetObjectID     string     `json:"targetObjectId"`
	TargetObjectName   string     `json:"targetObjectName"`
	TargetInstanceType string     `json:"targetInstanceType"`
	CustomDetails      JobDetails `json:"customDetails"`
	RequestedBy        string     `json:"holdfastRequestedBy,omitempty"`
	ItemID             string     `json:"holdfastItemId,omitempty"`
	ProgressPercent    float64    `json:"holdfastProgressPercent"` // over all tasks, 0..100
}

// Task is one step of a job. The fields from ProgressPercent on are ours.
type Task struct {
	TaskID           string     `json:"taskId"`
	Name             string     `json:"name"`
	StartTime        *time.Time `json:"startTime,omitempty"`
	EndTime          *time.Time `json:"endTime,omitempty"`
	AllowedActions   []string   `json:"allowedActions"`
	FriendlyName     string     `json:"friendlyName"`
	State            string     `json:"state"`
	StateDescription string     `json:"stateDescription"`
	TaskType         string     `json:"taskType"`
	Errors           []JobError `json:"errors"`
	ProgressPercent  float64    `json:"holdfastProgressPercent"`
	ETASeconds       int64      `json:"holdfastEtaSeconds,omitempty"` // 0 = unknown
	Note             string     `json:"holdfastNote,omitempty"`
	Attempt          int        `json:"holdfastAttempt,omitempty"`
}

// JobError is one failed attempt.
type JobError struct {
	ServiceErrorDetails  *ServiceError  `json:"serviceErrorDetails,omitempty"`
	ProviderErrorDetails *ProviderError `json:"providerErrorDetails,omitempty"`
	ErrorLevel           string         `json:"errorLevel"`
	CreationTime         *time.Time     `json:"creationTime,omitempty"`
	TaskID               string         `json:"taskId"`
}

// ServiceError is what the vault says about an error.
type ServiceError struct {
	Code              string `json:"code"`
	Message           string `json:"message"`
	PossibleCauses    string `json:"possibleCauses"`
	RecommendedAction string `json:"recommendedAction"`
	ActivityID        string `json:"activityId"`
}

// ProviderError is what an agent says about an error.
type ProviderError struct {
	ErrorCode         int32  `json:"errorCode"`
	ErrorMessage      string `json:"errorMessage"`
	ErrorID           string `json:"errorId"`
	PossibleCauses    string `json:"possibleCauses"`
	RecommendedAction string `json:"recommendedAction"`
}

// Instance types of JobDetails.
const (
	AsrJobDetails          = "AsrJobDetails"
	FailoverJobDetails     = "FailoverJobDetails"
	TestFailoverJobDetails = "TestFailoverJobDetails"
)

// JobDetails is customDetails of a job: AsrJobDetails uses only the first two
// fields, FailoverJobDetails also ProtectedItemDetails, TestFailoverJobDetails all.
type JobDetails struct {
	InstanceType          string            `json:"instanceType"`
	AffectedObjectDetails map[string]string `json:"affectedObjectDetails"`
	ProtectedItemDetails  []FailoverItem    `json:"protectedItemDetails,omitempty"`
	TestFailoverStatus    string            `json:"testFailoverStatus,omitempty"` // Active, Completed or Failed
	Comments              string            `json:"comments,omitempty"`
	NetworkName           string            `json:"networkName,omitempty"`
	NetworkFriendlyName   string            `json:"networkFriendlyName,omitempty"`
	NetworkType           string            `json:"networkType,omitempty"`
	BootProof             *BootProof        `json:"holdfastBootProof,omitempty"`
	ScreenshotURL         string            `json:"holdfastScreenshotUrl,omitempty"`
	Outcome               map[string]string `json:"holdfastOutcome,omitempty"` // everything that the job found worth showing
}

// FailoverItem is one VM of a failover job.
type FailoverItem struct {
	Name                    string     `json:"name"`
	FriendlyName            string     `json:"friendlyName"`
	TestVMName              string     `json:"testVmName,omitempty"`
	TestVMFriendlyName      string     `json:"testVmFriendlyName,omitempty"`
	NetworkConnectionStatus string     `json:"networkConnectionStatus,omitempty"`
	NetworkFriendlyName     string     `json:"networkFriendlyName,omitempty"`
	Subnet                  string     `json:"subnet,omitempty"`
	RecoveryPointID         string     `json:"recoveryPointId,omitempty"`
	RecoveryPointTime       *time.Time `json:"recoveryPointTime,omitempty"`
}

// BootProof says how the recovery VM showed that it came up.
type BootProof struct {
	VM            string `json:"vm,omitempty"`
	RecoveryPoint string `json:"recoveryPoint,omitempty"`
	Seconds       string `json:"seconds,omitempty"` // from start to the sign of life, decimal
	Verified      bool   `json:"verified"`
	Matched       string `json:"matched,omitempty"` // console text that was the sign
}

// ResumeInput resumes a job that waits for a person.
type ResumeInput struct {
	Comments string `json:"comments,omitempty"`
}
