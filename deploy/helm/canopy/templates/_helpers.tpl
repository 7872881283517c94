{{/* Names are at most 63 characters; a node's name in the tree is that of its pod, NAME-node-NUMBER. */}}
{{- define "canopy.name" -}}
{{- if contains "canopy" .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-canopy" (.Release.Name | trunc 33 | trimSuffix "-") }}
{{- end -}}
{{- end }}

{{- define "canopy.selector" -}}
app.kubernetes.io/name: canopy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "canopy.labels" -}}
{{ include "canopy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "canopy.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The public name of the model, as its figures have it: that of --model, or the engine's default. */}}
{{- define "canopy.model" -}}
{{- if .Values.model -}}
{{ .Values.model }}
{{- else if eq .Values.engine "transformers" -}}
smollm2-135m-instruct
{{- else -}}
{{ .Values.engine }}
{{- end -}}
{{- end }}

{{/* Variables of both roles. */}}
{{- define "canopy.env" -}}
- name: CANOPY_AMQP_URL_FILE
  value: /run/secrets/canopy/amqp-url
- name: CANOPY_MANAGEMENT_URL_FILE
  value: /run/secrets/canopy/management-url
- name: CANOPY_PREFIX
  value: {{ .Values.broker.prefix | quote }}
- name: CANOPY_QUEUE_TYPE
  value: {{ .Values.broker.queueType | quote }}
- name: CANOPY_LOG_FORMAT
  value: json
{{- end }}

{{- define "canopy.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "canopy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* A role's own claim, as a StatefulSet makes one a pod. */}}
{{- define "canopy.claim" -}}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata: { name: data }
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .className }}
    storageClassName: {{ . }}
    {{- end }}
    resources: { requests: { storage: {{ .size }} } }
{{- end }}
