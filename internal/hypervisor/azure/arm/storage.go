package arm

import (
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// StorageKey is the account's shared key as the configuration says; "" = the
// account is used with Entra ID. A secret.
func (c Config) StorageKey() (string, error) {
	if c.StorageKeyFile != "" {
		b, err := readSecret("storageKeyFile", c.StorageKeyFile)
		return strings.TrimSpace(string(b)), err
	}
	return os.Getenv(StorageKeyVariable), nil
}

// Container is a client of the configured container, with the shared key if there
// is one and Entra ID otherwise. Its errors are for Classify.
func (s *Session) Container() (*container.Client, error) {
	const op = "azure.Container"
	if s.cfg.StorageAccount == "" {
		return nil, configError(op, "storageAccount and container are missing")
	}
	address := s.cfg.Endpoints().Blob(s.cfg.StorageAccount) + "/" + s.cfg.Container
	key, err := s.cfg.StorageKey()
	if err != nil {
		return nil, err
	}
	o := &container.ClientOptions{ClientOptions: s.ClientOptions()}
	var c *container.Client
	if key == "" {
		c, err = container.NewClient(address, s.cred, o)
	} else {
		var shared *container.SharedKeyCredential
		if shared, err = container.NewSharedKeyCredential(s.cfg.StorageAccount, key); err == nil {
			c, err = container.NewClientWithSharedKeyCredential(address, shared, o)
		}
	}
	if err != nil {
		return nil, configError(op, "the storage account %s can't be used: its key or address has the wrong form", s.cfg.StorageAccount) // err may show the key
	}
	return c, nil
}
